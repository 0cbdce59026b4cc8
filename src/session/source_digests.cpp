#include "session/source_digests.hpp"

#include <algorithm>
#include <cstring>

namespace ropeway::session {
namespace {

bool same_place(tensor_view const& a, tensor_view const& b) noexcept {
  return a.data() == b.data() && a.type() == b.type() && a.where() == b.where() &&
         a.is_strided() == b.is_strided() && (!a.is_strided() || a.strides() == b.strides());
}

} // namespace

std::uint64_t source_digests::begin(std::shared_ptr<layout> const& of, memory::backends& memory) {
  if (layout_ != of) {
    chunks_ = std::make_shared<plan::chunk_table const>(of->manifest);
    layout_ = of;
  }
  std::uint64_t const bytes = std::max<std::uint64_t>(1, chunks_->chunks()) * protocol::digest_bytes;
  if (bytes != table_bytes_) {
    table_ = memory.get(device::host())->make_region(bytes);
    table_bytes_ = bytes;
    ++table_id_;
  }
  return table_id_;
}

std::shared_ptr<digest_list> source_digests::known(std::span<tensor_view const> views) const noexcept {
  bool const same =
      list_ && made_for_.of == layout_ &&
      std::equal(views.begin(), views.end(), made_for_.views.begin(), made_for_.views.end(), same_place);
  return same ? list_ : nullptr;
}

std::shared_ptr<digest_list> source_digests::known(device slots) const noexcept {
  bool const same = list_ && made_for_.of == layout_ && made_for_.views.empty() && made_for_.slots == slots;
  return same ? list_ : nullptr;
}

source_digests::purpose source_digests::purpose_of(std::span<tensor_view const> views, device slots) const {
  purpose of;
  of.of = layout_;
  of.chunks = chunks_;
  of.views.assign(views.begin(), views.end());
  of.slots = slots;
  return of;
}

std::shared_ptr<digest_list> source_digests::make(memory::backends& memory, purpose const& of) {
  auto const& manifest = of.of->manifest;
  auto ops = of.views.empty() ? plan::slot_digests(manifest, *of.chunks, of.slots)
                              : plan::source_digests(manifest, *of.chunks, of.views);
  return std::make_shared<digest_list>(memory, std::move(ops), of.chunks->chunks());
}

void source_digests::keep(purpose of, std::shared_ptr<digest_list> list) {
  made_for_ = std::move(of);
  list_ = std::move(list);
}

std::shared_ptr<digest_list> source_digests::take() { return std::exchange(list_, nullptr); }

digest128 source_digests::write(digest_list const& list) {
  sums_.assign(chunks_->chunks(), digest128());
  list.add_to(sums_);
  if (!sums_.empty()) std::memcpy(table_.memory->data(), sums_.data(), sums_.size() * sizeof sums_[0]);
  return chunks_->whole(sums_);
}

digest128 source_digests::write_nothing() {
  sums_.assign(chunks_->chunks(), digest128());
  return chunks_->whole(sums_);
}

} // namespace ropeway::session
