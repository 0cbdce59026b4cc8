// Keeps starting and ending listeners at one path apart. Part of ropeway; Apache-2.0.
#pragma once
#include <string>

#include "base/unique_fd.hpp"

namespace ropeway::wire {

/// Holds a lock on PATH.lock while it lives, and removes the file then. Waits for another holder, at most two
/// seconds: holding it takes some system calls. Throws `errc::not_permitted`, `errc::bad_path` or
/// `errc::address_in_use`.
class path_lock {
 public:
  explicit path_lock(std::string const& path);
  ~path_lock();
  path_lock(path_lock const&) = delete;
  path_lock& operator=(path_lock const&) = delete;

 private:
  std::string name_;
  unique_fd file_;
};

} // namespace ropeway::wire
