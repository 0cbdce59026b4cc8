#include "wire/address.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>

#include "ropeway/error.hpp"

namespace ropeway::wire {
namespace {

// The last byte stays zero.
constexpr std::size_t longest_path = sizeof(sockaddr_un::sun_path) - 1;

[[noreturn]] void bad_path(std::string const& path, std::string const& why) {
  throw transfer_error(errc::bad_path, "socket path " + path + ": " + why);
}
[[noreturn]] void not_permitted(std::string const& path, std::string const& why) {
  throw transfer_error(errc::not_permitted, "socket path " + path + ": " + why);
}

std::string directory_of(std::string const& path) {
  auto const parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

void make_directory(std::string const& path, std::string const& directory, trust const& whom) {
  mode_t const mode = whom.group_access() ? 0750 : 0700;
  if (::mkdir(directory.c_str(), mode) == 0 || errno == EEXIST) return;
  int const error = errno;
  if (error == ENOENT) bad_path(path, "the directory above " + directory + " is missing; make it first");
  if (error == ENOTDIR) bad_path(path, "what is above " + directory + " is not a directory");
  not_permitted(path, "can't make the directory " + directory + ": " + std::strerror(error));
}

std::string octal(mode_t mode) {
  char text[8];
  std::snprintf(text, sizeof text, "%04o", static_cast<unsigned>(mode & 07777U));
  return text;
}

// Of the directory, and of the link that leads to it: who owns one of them can put another in its place.
void check_owner(std::string const& path, std::string directory, struct stat const& about, trust const& whom,
                 std::string const& advice) {
  auto const check = [&](struct stat const& which) {
    if (which.st_uid == ::geteuid() || which.st_uid == 0 || whom.allows(which.st_uid)) return;
    not_permitted(path, directory + " belongs to user " + std::to_string(which.st_uid) + advice);
  };
  check(about);
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back(); // it would be followed
  struct stat link {};
  if (::lstat(directory.c_str(), &link) == 0 && S_ISLNK(link.st_mode)) {
    directory = "the link " + directory;
    check(link);
  }
}

void check_directory(std::string const& path, std::string const& directory, trust const& whom) {
  struct stat about {};
  int found = ::stat(directory.c_str(), &about);
  if (found != 0 && errno == ENOENT) {
    make_directory(path, directory, whom);
    found = ::stat(directory.c_str(), &about);
  }
  if (found != 0 && errno == EACCES) not_permitted(path, directory + " can't be entered");
  if (found != 0) bad_path(path, directory + ": " + std::strerror(errno));
  if (!S_ISDIR(about.st_mode)) bad_path(path, directory + " is not a directory");
  if (whom.any_directory()) return;
  check_owner(path, directory, about, trust(), "; use a directory of your own");
  mode_t const refused = whom.group_access() ? 0027U : 0077U;
  if ((about.st_mode & refused) == 0) return;
  if ((about.st_mode & S_ISVTX) != 0) {
    auto const name = std::filesystem::path(path).filename().string();
    not_permitted(path, directory + " is shared by all users; use a private directory in it, for example " +
                            directory + "/ropeway-" + std::to_string(::geteuid()) + "/" + name +
                            " (made when missing)");
  }
  not_permitted(path, directory + " is open to other users (mode " + octal(about.st_mode) + "); chmod " +
                          (whom.group_access() ? "0750 " : "0700 ") + directory +
                          ", or name a directory that does not exist yet");
}

} // namespace

trust& trust::user(uid_t uid) {
  users_.push_back(uid);
  return *this;
}

trust trust::only(std::vector<uid_t> users) {
  trust whom;
  whom.users_ = std::move(users);
  whom.self_ = false;
  return whom;
}

trust& trust::group_access(bool on) {
  group_ = on;
  return *this;
}

trust& trust::any_directory(bool on) {
  any_directory_ = on;
  return *this;
}

bool trust::allows(uid_t uid) const noexcept {
  return (self_ && uid == ::geteuid()) || std::find(users_.begin(), users_.end(), uid) != users_.end();
}

void check_path(std::string const& path) {
  if (path.empty()) throw transfer_error(errc::bad_path, "the socket path is empty");
  if (path.find('\0') != std::string::npos) {
    throw transfer_error(errc::bad_path, "the socket path holds a zero byte; abstract sockets are not used");
  }
  if (path.back() == '/') bad_path(path, "it ends in a slash; name the socket in the directory");
  if (path.size() > longest_path) {
    bad_path(path, "it has " + std::to_string(path.size()) + " bytes, the system allows " +
                       std::to_string(longest_path) + "; use a shorter one");
  }
}

void check_directory_of(std::string const& path, trust const& whom) {
  if (whom.any_directory()) return;
  std::string const directory = directory_of(path);
  struct stat about {};
  if (::stat(directory.c_str(), &about) != 0) bad_path(path, directory + ": " + std::strerror(errno));
  check_owner(path, directory, about, whom, "; allow that user, or run both as the same");
  if ((about.st_mode & 0022U) == 0) return;
  not_permitted(path, "others may write to " + directory + " (mode " + octal(about.st_mode) +
                          ") and put another socket there; have the sender listen in a private directory, or "
                          "allow shared ones");
}

void prepare_directory(std::string const& path, trust const& whom) {
  check_path(path);
  std::string const directory = directory_of(path);
  check_directory(path, directory, whom);
  struct stat about {};
  if (::lstat(path.c_str(), &about) == 0) {
    if (S_ISDIR(about.st_mode)) bad_path(path, "it is a directory; name a socket in it");
    if (!S_ISSOCK(about.st_mode))
      bad_path(path, "there is a file that is not a socket; it was left untouched");
  } else if (errno == EACCES) {
    not_permitted(path, directory + " can't be entered");
  }
  if (::faccessat(AT_FDCWD, directory.c_str(), W_OK | X_OK, AT_EACCESS) != 0) {
    not_permitted(path, directory + " is not writable: " + std::strerror(errno));
  }
}

} // namespace ropeway::wire
