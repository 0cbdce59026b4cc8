// Any index of a sharded checkpoint: what is not refused leads to plain files beside it only.
#include <map>

#include "checkpoint/header.hpp"
#include "checkpoint/index.hpp"
#include "checkpoint/input_file.hpp"
#include "safetensors.hpp"

namespace ropeway::fuzz {

void index(input in) {
  static file_in_memory file;
  // A longer file than any index may be, of which nothing is read.
  bool const endless = !in.empty() && in.back() == 0xff;
  file.fill(in, endless ? max_header_size + 1 : in.size());
  shard_index found;
  try {
    found = read_index(input_file(file.path()));
  } catch (transfer_error const& e) {
    promise(e.code() == make_error_code(errc::bad_checkpoint), "a bad index is called a bad file");
    promise(std::string_view(e.what()).find('\n') == std::string_view::npos, "a refusal is one line");
    return;
  }
  promise(!endless, "an endless index is refused");
  std::map<std::string, std::size_t> counted;
  for (auto const& [tensor, name] : found.where) {
    promise(name != nullptr && found.files.contains(*name) && &found.files.find(*name)->first == name,
            "a tensor is in one of the files");
    ++counted[*name];
  }
  promise(counted == found.files, "each file is counted as often as it is named");
  for (auto const& [name, tensors] : found.files)
    promise(!name.empty() && name != "." && name != ".." && name.size() <= 255 &&
                name.find_first_of(std::string_view("/\0", 2)) == std::string::npos,
            "an index leads to plain names only");
}

} // namespace ropeway::fuzz
