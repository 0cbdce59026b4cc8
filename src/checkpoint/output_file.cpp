#include "checkpoint/output_file.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <limits>
#include <random>
#include <sys/stat.h>
#include <utility>

#include "checkpoint/input_file.hpp"

namespace ropeway {
namespace {

constexpr mode_t mode = 0666; // less the umask, as any program does

std::filesystem::path own_link(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

// Tries names until `make` finds one that is free; it returns 0 or an errno.
template <class Make>
std::filesystem::path unused_name(std::filesystem::path const& beside, Make make) {
  std::random_device random;
  for (int tries = 0;; ++tries) {
    // The name may be as long as a name can be: only its beginning is kept.
    std::string const name =
        "." + beside.filename().native().substr(0, 200) + '.' + std::to_string(random()) + ".partial";
    auto const candidate = beside.parent_path() / name;
    int const error = make(candidate);
    if (error == 0) return candidate;
    if (error != EEXIST || tries == 100)
      throw system_failure(error, beside, "can't create a file in its directory");
  }
}

} // namespace

output_file::output_file(std::filesystem::path path, std::uint64_t size)
    : path_(std::move(path)), directory_(path_.has_parent_path() ? path_.parent_path() : ".") {
  struct stat status {};
  bool const exists = ::stat(path_.c_str(), &status) == 0;
  if (!path_.has_filename() || (exists && S_ISDIR(status.st_mode)))
    throw system_failure(EISDIR, path_, "can't write a checkpoint there");
  if (exists && !S_ISREG(status.st_mode)) // a rename would put a file in the place of, say, /dev/null
    throw transfer_error(errc::invalid_argument,
                         label(path_) + ": is no regular file and will not be replaced");
  open_nameless();
  if (!fd_) open_named();
  try {
    reserve(size);
  } catch (...) {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    throw;
  }
}

output_file::~output_file() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void output_file::open_nameless() {
  fd_.reset(::open(directory_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, mode));
  // A name is given through /proc; without it the content could never be seen.
  if (fd_ && ::faccessat(AT_FDCWD, own_link(fd_.get()).c_str(), F_OK, 0) != 0) fd_.reset();
}

void output_file::open_named() {
  temporary_ = unused_name(path_, [&](std::filesystem::path const& name) {
    fd_.reset(::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode));
    return fd_ ? 0 : errno;
  });
}

void output_file::reserve(std::uint64_t size) {
  std::string const what = "can't take " + std::to_string(size) + " bytes for the checkpoint";
  if (size > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max()))
    throw system_failure(EFBIG, path_, what);
  int result = 0;
  do {
    result = ::fallocate(fd_.get(), 0, 0, static_cast<off_t>(size)) == 0 ? 0 : errno;
  } while (result == EINTR);
  // Not every file system reserves; a full disk is then noticed while writing.
  if (result == EOPNOTSUPP) result = ::ftruncate(fd_.get(), static_cast<off_t>(size)) == 0 ? 0 : errno;
  if (result != 0) throw system_failure(result, path_, what);
}

void output_file::write(std::uint64_t offset, std::span<std::byte const> bytes) {
  while (!bytes.empty()) {
    // The kernel takes at most 2 GiB at once.
    std::size_t const now = std::min<std::size_t>(bytes.size(), std::size_t{1} << 30);
    ssize_t const put = ::pwrite(fd_.get(), bytes.data(), now, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw system_failure(errno, path_, "can't write byte " + std::to_string(offset));
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
}

void output_file::give_temporary_name() {
  // A link can't replace a file, a rename can.
  temporary_ = unused_name(path_, [&](std::filesystem::path const& name) {
    auto const from = own_link(fd_.get());
    return ::linkat(AT_FDCWD, from.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) == 0 ? 0 : errno;
  });
}

void output_file::publish() {
  if (::fsync(fd_.get()) != 0) throw system_failure(errno, path_, "can't make the checkpoint durable");
  if (temporary_.empty()) give_temporary_name();
  if (::rename(temporary_.c_str(), path_.c_str()) != 0)
    throw system_failure(errno, path_, "can't give the checkpoint its name");
  temporary_.clear();
  // So that the name survives a power failure too; not every file system has this for directories.
  unique_fd const directory(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory && ::fsync(directory.get()) != 0 && errno != EINVAL)
    throw system_failure(errno, path_, "can't make the checkpoint's name durable");
  fd_.reset();
}

} // namespace ropeway
