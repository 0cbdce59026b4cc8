// A directory that only we can enter, removed with what is in it. Part of ropeway; Apache-2.0.
#pragma once
#include <string>

namespace ropeway::cli {

class private_directory {
 public:
  /// Below $TMPDIR, or /tmp. Throws std::system_error.
  private_directory();
  private_directory(private_directory const&) = delete;
  private_directory& operator=(private_directory const&) = delete;
  ~private_directory();
  /// The path of a file in it.
  std::string file(std::string const& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

} // namespace ropeway::cli
