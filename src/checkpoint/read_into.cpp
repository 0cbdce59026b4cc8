#include <utility>
#include <vector>

#include "checkpoint/text.hpp"
#include "ropeway/checkpoint.hpp"

namespace ropeway {
namespace {

constexpr std::size_t most_reported = 100;

// What keeps `into` from being filled from `from`, or nothing.
std::string difference(checkpoint const& from, mutable_tensor_view const& into) {
  auto const at = from.find(into.name());
  std::string const subject = "tensor " + in_quotes(into.name());
  if (!at) return subject + " is not in the checkpoint";
  tensor_info const& info = from.tensors()[*at].info;
  if (info.type == into.type() && info.dims == into.dims()) return {};
  return subject + " is " + std::string(name(info.type)) + ' ' + to_string(info.dims) +
         " in the checkpoint and " + std::string(name(into.type())) + ' ' + to_string(into.dims()) + " here";
}

void check(checkpoint const& from, std::span<mutable_tensor_view const> into) {
  std::string list;
  std::size_t count = 0;
  for (auto const& view : into) {
    if (view.where() != device::host() || view.is_strided())
      throw transfer_error(errc::unsupported, "tensor " + in_quotes(view.name()) +
                                                  ": a checkpoint is read into contiguous host memory only")
          .tensor(view.name());
    std::string text = difference(from, view);
    if (text.empty() || ++count > most_reported) continue;
    if (!list.empty()) list += "; ";
    list += text;
  }
  if (count > most_reported) list += "; and " + std::to_string(count - most_reported) + " more";
  if (count > 0) throw transfer_error(errc::destination_mismatch, list);
}

} // namespace

void read_into(checkpoint const& from, std::span<mutable_tensor_view const> into,
               read_options const& options) {
  check(from, into);
  checkpoint_reader reader(from, options);
  for (auto const& view : into) {
    std::size_t const tensor = *from.find(view.name());
    reader.start(tensor, 0, std::span(view.data(), static_cast<std::size_t>(from.tensors()[tensor].bytes)));
  }
  reader.wait_all();
}

} // namespace ropeway
