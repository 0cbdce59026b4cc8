#include "wire/path_lock.hpp"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <system_error>
#include <thread>

#include "ropeway/error.hpp"

namespace ropeway::wire {
namespace {

unique_fd open_lock(std::string const& name) {
  unique_fd file(::open(name.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (file) return file;
  int const error = errno;
  std::string const text = "can't make the lock " + name + ": " + std::strerror(error);
  if (error == EACCES || error == EPERM || error == EROFS) throw transfer_error(errc::not_permitted, text);
  if (error == EISDIR || error == ELOOP || error == ENAMETOOLONG) throw transfer_error(errc::bad_path, text);
  throw transfer_error(std::error_code(error, std::system_category()), text);
}

// Whoever had the lock before may have removed the file that was opened here.
bool is_still(int fd, std::string const& name) noexcept {
  struct stat held {
  }, there{};
  return ::fstat(fd, &held) == 0 && ::lstat(name.c_str(), &there) == 0 && held.st_dev == there.st_dev &&
         held.st_ino == there.st_ino;
}

} // namespace

path_lock::path_lock(std::string const& path) : name_(path + ".lock") {
  auto const deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  for (;;) {
    unique_fd file = open_lock(name_);
    while (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK && errno != EINTR) {
        throw transfer_error(std::error_code(errno, std::system_category()), "can't lock " + name_);
      }
      if (std::chrono::steady_clock::now() > deadline) {
        throw transfer_error(errc::address_in_use,
                             "another process is starting or ending at " + path + " and holds " + name_);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (is_still(file.get(), name_)) {
      file_ = std::move(file);
      return;
    }
  }
}

path_lock::~path_lock() {
  ::unlink(name_.c_str());
  // Explicitly: a child that was forked meanwhile has the descriptor too, and would keep the lock.
  ::flock(file_.get(), LOCK_UN);
}

} // namespace ropeway::wire
