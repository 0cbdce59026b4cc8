#include "checkpoint/input_file.hpp"

#include <bit>
#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <utility>

#include "checkpoint/text.hpp"

namespace ropeway {

std::string label(std::filesystem::path const& path) {
  std::string const text = in_quotes(path.native());
  return text.substr(1, text.size() - 2);
}

transfer_error system_failure(int number, std::filesystem::path const& path, std::string const& what) {
  return transfer_error(std::error_code(number, std::system_category()), label(path) + ": " + what);
}

input_file::input_file(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code no_directory; // then the relative name has to do
  absolute_ = std::filesystem::absolute(path_, no_directory);
  if (no_directory) absolute_ = path_;
  // O_NONBLOCK: opening a pipe must not wait for its writer. Regular files ignore it.
  fd_.reset(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd_) throw system_failure(errno, path_, "can't open the checkpoint");
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) throw system_failure(errno, path_, "can't stat the checkpoint");
  if (!S_ISREG(status.st_mode))
    throw transfer_error(errc::bad_checkpoint, label(path_) + ": is not a regular file");
  size_ = static_cast<std::uint64_t>(status.st_size);
}

void input_file::read_exactly(std::uint64_t offset, std::span<char> into) const {
  while (!into.empty()) {
    ssize_t const got = ::pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw system_failure(errno, path_, "can't read byte " + std::to_string(offset));
    if (got == 0)
      throw transfer_error(errc::bad_checkpoint, label(path_) + ": ends at byte " + std::to_string(offset) +
                                                     "; it shrank after it was opened");
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

direct_file input_file::open_direct() const {
  direct_file result;
  unique_fd fd(::open(absolute_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_DIRECT));
  struct stat ours {
  }, opened{};
  if (!fd || ::fstat(fd_.get(), &ours) != 0 || ::fstat(fd.get(), &opened) != 0) return result;
  // The name may lead to another file by now.
  if (ours.st_dev != opened.st_dev || ours.st_ino != opened.st_ino) return result;
  // What every disk that we know of can do, for kernels that don't say.
  result.offset_alignment = result.memory_alignment = 4096;
#ifdef STATX_DIOALIGN
  struct statx extended {};
  if (::statx(fd.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &extended) == 0 &&
      (extended.stx_mask & STATX_DIOALIGN) != 0) {
    auto const usable = [](std::uint32_t alignment) {
      return std::has_single_bit(alignment) && alignment <= 65536;
    };
    if (!usable(extended.stx_dio_offset_align) || !usable(extended.stx_dio_mem_align)) return result;
    result.offset_alignment = extended.stx_dio_offset_align;
    result.memory_alignment = extended.stx_dio_mem_align;
  }
#endif
  result.fd = std::move(fd);
  return result;
}

} // namespace ropeway
