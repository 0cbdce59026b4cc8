#include "checkpoint/header_listener.hpp"

#include <utility>

#include "checkpoint/text.hpp"

namespace ropeway {

std::string header_listener::subject() const {
  switch (place_) {
  case place::nothing: return "the header";
  case place::top: return name_ == "__metadata__" ? "__metadata__" : "tensor " + in_quotes(name_);
  case place::metadata: return "__metadata__ member " + in_quotes(key_);
  case place::dtype: return "dtype of tensor " + in_quotes(name_);
  case place::dims: return "shape of tensor " + in_quotes(name_);
  case place::offsets: return "data_offsets of tensor " + in_quotes(name_);
  case place::entry:
  case place::foreign: break;
  }
  return "tensor " + in_quotes(name_);
}

void header_listener::unexpected(std::string_view what) const {
  char const* wanted = "an object";
  if (place_ == place::metadata)
    wanted = "a string";
  else if (place_ == place::dtype)
    wanted = "a string";
  else if (place_ == place::dims || place_ == place::offsets)
    wanted = in_list_ ? "a whole number from 0 on" : "a list of whole numbers";
  throw json_fault(subject() + (in_list_ ? " holds " : " is ") + std::string(what) + "; it must be " +
                   wanted);
}

void header_listener::begin_object() {
  switch (place_) {
  case place::nothing: place_ = place::top; return;
  case place::top:
    if (name_ == "__metadata__") {
      place_ = place::metadata;
      return;
    }
    place_ = place::entry;
    current_ = {};
    current_.info.name = name_;
    has_dtype_ = has_dims_ = has_offsets_ = false;
    members_.clear();
    return;
  case place::foreign: ++foreign_depth_; return;
  default: unexpected("an object");
  }
}

void header_listener::end_object() {
  if (place_ == place::foreign) {
    if (--foreign_depth_ == 0) place_ = place::entry;
  } else if (place_ == place::entry) {
    finish_entry();
    place_ = place::top;
  } else {
    place_ = place_ == place::metadata ? place::top : place::nothing;
  }
}

void header_listener::begin_array() {
  if (place_ == place::foreign) {
    ++foreign_depth_;
  } else if ((place_ == place::dims || place_ == place::offsets) && !in_list_) {
    in_list_ = true;
    numbers_.clear();
  } else {
    unexpected("a list");
  }
}

void header_listener::end_array() {
  if (place_ == place::foreign) {
    if (--foreign_depth_ == 0) place_ = place::entry;
    return;
  }
  if (place_ == place::dims) {
    current_.info.dims = shape(numbers_);
    has_dims_ = true;
  } else {
    if (numbers_.size() != 2)
      throw json_fault(subject() + " holds " + std::to_string(numbers_.size()) + " numbers instead of 2");
    current_.begin = numbers_[0];
    current_.end = numbers_[1];
    has_offsets_ = true;
  }
  in_list_ = false;
  place_ = place::entry;
}

void header_listener::key(std::string&& text) {
  switch (place_) {
  case place::top:
    name_ = std::move(text);
    if (name_ == "__metadata__" && std::exchange(has_metadata_, true))
      throw json_fault("__metadata__ appears twice");
    return;
  case place::metadata:
    key_ = std::move(text);
    if (metadata.contains(key_)) throw json_fault(subject() + " appears twice");
    return;
  case place::entry:
    if (!members_.insert(text).second) throw json_fault(subject() + " has " + in_quotes(text) + " twice");
    place_ = text == "dtype"          ? place::dtype
             : text == "shape"        ? place::dims
             : text == "data_offsets" ? place::offsets
                                      : place::foreign;
    foreign_depth_ = 0;
    return;
  default: return; // inside something foreign
  }
}

void header_listener::string(std::string&& text) {
  if (place_ == place::metadata) {
    metadata.emplace(std::move(key_), std::move(text));
  } else if (place_ == place::dtype) {
    auto const type = parse_dtype(text);
    if (!type) throw json_fault(subject() + " is " + in_quotes(text) + ", which is not known");
    current_.info.type = *type;
    has_dtype_ = true;
    place_ = place::entry;
  } else {
    other("a string");
  }
}

void header_listener::number(std::uint64_t value) {
  if (!in_list_) return other("a number");
  if (place_ == place::dims && numbers_.size() == max_rank)
    throw json_fault(subject() + " has more than " + std::to_string(max_rank) +
                         " dimensions; ropeway carries no more",
                     errc::unsupported);
  // One too many is kept so that it is noticed; a million are not.
  if (numbers_.size() < max_rank) numbers_.push_back(value);
}

void header_listener::other(std::string_view what) {
  if (place_ != place::foreign) unexpected(what);
  if (foreign_depth_ == 0) place_ = place::entry;
}

void header_listener::finish_entry() {
  auto const missing = [&](char const* what) {
    throw json_fault("tensor " + in_quotes(name_) + " has no " + what);
  };
  if (!has_dtype_) missing("dtype");
  if (!has_dims_) missing("shape");
  if (!has_offsets_) missing("data_offsets");

  auto const text = [&] {
    return std::string(name(current_.info.type)) + ' ' + to_string(current_.info.dims);
  };
  std::uint64_t count = 1, total_bits = 0;
  bool overflow = false;
  // Dimension by dimension as the reference does it: an overflow counts even if a later extent is 0.
  for (std::uint64_t extent : current_.info.dims.extents())
    overflow = overflow || __builtin_mul_overflow(count, extent, &count);
  if (overflow || __builtin_mul_overflow(count, bits(current_.info.type), &total_bits))
    throw json_fault("tensor " + in_quotes(name_) + " (" + text() + ") has a size that overflows 64 bits");
  if (total_bits % 8 != 0)
    throw json_fault("tensor " + in_quotes(name_) + " (" + text() + ") takes no whole number of bytes");
  std::string const range = "[" + std::to_string(current_.begin) + ", " + std::to_string(current_.end) + "]";
  if (current_.end < current_.begin)
    throw json_fault("data_offsets " + range + " of tensor " + in_quotes(name_) + " end before they begin");
  if (current_.end - current_.begin != total_bits / 8)
    throw json_fault("tensor " + in_quotes(name_) + " (" + text() + ") takes " +
                     std::to_string(total_bits / 8) + " bytes, but data_offsets " + range + " give it " +
                     std::to_string(current_.end - current_.begin));
  entries.push_back(std::move(current_));
}

} // namespace ropeway
