// Understands the JSON of a safetensors header. Part of ropeway; Apache-2.0.
#pragma once
#include <set>
#include <vector>

#include "checkpoint/json_events.hpp"
#include "ropeway/checkpoint.hpp"

namespace ropeway {

/// One entry of the header: offsets count from the start of the data.
struct header_entry {
  tensor_info info;
  std::uint64_t begin = 0, end = 0;
};

/// Checks each entry by itself. How entries lie to each other, and names that appear twice, are seen only at
/// the end. Members of an entry that the format does not know are skipped, as the reference does.
class header_listener : public json_listener {
 public:
  std::vector<header_entry> entries;
  checkpoint_metadata metadata;

  void begin_object() override;
  void end_object() override;
  void begin_array() override;
  void end_array() override;
  void key(std::string&& text) override;
  void string(std::string&& text) override;
  void number(std::uint64_t value) override;
  void other(std::string_view what) override;

 private:
  enum class place { nothing, top, metadata, entry, dtype, dims, offsets, foreign };

  void unexpected(std::string_view what) const;
  void finish_entry();
  std::string subject() const;

  place place_ = place::nothing;
  bool in_list_ = false, has_metadata_ = false;
  bool has_dtype_ = false, has_dims_ = false, has_offsets_ = false;
  std::size_t foreign_depth_ = 0;
  std::string name_, key_;
  std::set<std::string> members_; // of the current entry
  header_entry current_;
  std::vector<std::uint64_t> numbers_;
};

} // namespace ropeway
