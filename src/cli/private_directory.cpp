#include "cli/private_directory.hpp"

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace ropeway::cli {

private_directory::private_directory() {
  char const* const where = std::getenv("TMPDIR");
  path_ = std::string(where != nullptr && *where != '\0' ? where : "/tmp") + "/ropeway-XXXXXX";
  if (!::mkdtemp(path_.data()))
    throw std::system_error(errno, std::system_category(),
                            "no directory can be made like " + path_ + "; set TMPDIR to where one can");
}

private_directory::~private_directory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

} // namespace ropeway::cli
