// Digests of tensors that are cut and scattered in every way add up to those of the tensors, and nothing else
// does.
#include "plan/digests.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>

#include "base/digest.hpp"
#include "ropeway/error.hpp"
#include "support.hpp"

using namespace ropeway;
using namespace ropeway::plan;
using test::for_each_index;

namespace {

using bytes = std::vector<std::byte>;
using sums = std::vector<digest128>;

/// The plainest way, element by element; each address must lie within `allowed`.
void perform(std::vector<memory::digest_op> const& ops, std::byte const* base, sums& into) {
  for (auto const& op : ops) {
    auto const* const first = base + static_cast<std::ptrdiff_t>(op.address);
    REQUIRE(op.sum < into.size());
    if (op.rank == 0) {
      CHECK(op.image / chunk_bytes == (op.image + op.bytes - 1) / chunk_bytes);
      into[op.sum] += digest_of_run(first, op.image, op.bytes);
      continue;
    }
    // Rows that lie in a row on both sides are taken at once: with a sanitizer, elements take minutes.
    std::size_t const inner = op.rank - 1u;
    bool const row = op.convert == memory::conversion::none && op.image_stride[inner] == op.image_element &&
                     op.data_stride[inner] == op.data_element;
    std::uint64_t const at_once = row ? op.extent[inner] * op.image_element : 0;
    for_each_index(std::span(op.extent).first(row ? inner : op.rank), [&](auto const& index) {
      auto const* from = first;
      std::uint64_t image = op.image;
      for (std::size_t d = 0; d < (row ? inner : op.rank); ++d) {
        from += static_cast<std::int64_t>(index[d]) * op.data_stride[d];
        image += index[d] * op.image_stride[d];
      }
      if (row) {
        into[op.sum] += digest_of_run(from, image, at_once);
        return;
      }
      std::array<std::byte, 16> value;
      test::convert_element(op.convert, from, value.data(), op.image_element);
      into[op.sum] += digest_of_run(value.data(), image, op.image_element);
    });
  }
}
void perform(std::vector<memory::digest_op> const& ops, sums& into) { perform(ops, nullptr, into); }

box box_of(std::vector<std::uint64_t> const& start, std::vector<std::uint64_t> const& extent) {
  box b;
  b.rank = static_cast<std::uint8_t>(start.size());
  std::copy(start.begin(), start.end(), b.start.begin());
  std::copy(extent.begin(), extent.end(), b.extent.begin());
  return b;
}

/// A sender's tensors, what it packs into buckets, and destinations that took it from there.
struct model {
  std::vector<bytes> memory;
  std::vector<tensor_view> views;
  std::vector<bytes> taken;
  std::vector<destination> into;
  std::unique_ptr<manifest> layout;
  std::unique_ptr<chunk_table> chunks;
  std::unique_ptr<scatter> places;
  std::vector<bytes> slots;

  tensor_view& tensor(std::string name, dtype type, std::vector<std::uint64_t> const& dims, dtype sent_as) {
    shape const form(dims);
    memory.push_back(test::dice(static_cast<std::uint32_t>(memory.size() + 1)).bytes(*byte_size(type, form)));
    if (type != sent_as && type == dtype::f32) // values that bf16 holds, for test::convert_element
      for (std::size_t i = 0; i < memory.back().size(); i += 4) memory.back()[i] = memory.back()[i + 1] = {};
    names.push_back(std::make_unique<std::string>(std::move(name)));
    views.emplace_back(*names.back(), type, form, memory.back().data());
    return views.back().sent_as(sent_as);
  }
  void take(std::string name, dtype type, std::optional<box> part, std::vector<std::uint64_t> const& dims) {
    shape const form(dims);
    taken.push_back(bytes(*byte_size(type, form)));
    into.push_back({std::move(name), part, mutable_tensor_view({}, type, form, taken.back().data()), {}});
  }
  void send(std::uint64_t bucket) {
    std::vector<tensor_info> infos;
    for (auto const& v : views) infos.push_back({std::string(v.name()), v.wire_type(), v.dims()});
    layout = std::make_unique<manifest>(manifest::cut(std::move(infos), bucket));
    chunks = std::make_unique<chunk_table>(*layout);
    places = std::make_unique<scatter>(*layout, into, true);
    REQUIRE(to_string(places->check()) == "0 differences: ");
    gather from(*layout);
    std::vector<memory::copy_op> ops;
    for (std::uint32_t b = 0; b < layout->buckets().size(); ++b) {
      slots.push_back(bytes(layout->buckets()[b].bytes, std::byte{0xee}));
      ops.clear();
      for (auto const& p : layout->pieces_of(b)) {
        from.ops_for_piece(p, views[p.tensor], slots[b].data(), device::host(), ops);
        places->ops_for_piece(p, slots[b].data(), device::host(), ops);
      }
      for (auto const& op : ops) test::perform(op);
    }
  }
  sums of_source() const {
    sums all(chunks->chunks());
    perform(source_digests(*layout, *chunks, views), all);
    return all;
  }
  void add_slots(std::vector<memory::digest_op> const& ops, sums& into_sums) const {
    CHECK(std::is_sorted(ops.begin(), ops.end(),
                         [](auto const& a, auto const& b) { return a.group < b.group; }));
    for (std::uint32_t b = 0; b < slots.size(); ++b) {
      std::vector<memory::digest_op> of_bucket;
      std::copy_if(ops.begin(), ops.end(), std::back_inserter(of_bucket),
                   [&](auto const& op) { return op.group == b; });
      perform(of_bucket, slots[b].data(), into_sums);
    }
  }
  sums received(digest_checks const& checks, bool mapped) const {
    sums all(checks.checks().size());
    perform(checks.of_destinations(), all);
    if (!mapped) {
      add_slots(checks.of_slots(nullptr, device::host()), all);
    } else {
      std::vector<memory::digest_op> ops;
      for (std::uint32_t t = 0; t < views.size(); ++t) checks.of_source(t, views[t], ops);
      perform(ops, all);
    }
    return all;
  }

 private:
  std::vector<std::unique_ptr<std::string>> names;
};

/// One of each kind: whole tensors, boxes of rows and of columns, strided, converted, packed, tied, small.
model many(std::uint64_t bucket) {
  model m;
  m.tensor("whole", dtype::bf16, {1000, 1100}, dtype::bf16);
  m.tensor("columns", dtype::bf16, {1200, 1024}, dtype::bf16);
  m.tensor("rows", dtype::f32, {700, 900}, dtype::f32);
  m.tensor("cast", dtype::f32, {900, 800}, dtype::bf16);
  m.tensor("turned", dtype::bf16, {700, 900}, dtype::bf16).strides(std::vector<std::int64_t>{1, 700});
  m.tensor("deep", dtype::u8, {3, 50, 70, 200}, dtype::u8);
  m.tensor("small", dtype::f32, {7}, dtype::f32);
  m.tensor("scalar", dtype::f32, {}, dtype::f32);
  m.tensor("empty", dtype::f32, {0, 4}, dtype::f32);
  m.tensor("unwanted", dtype::u8, {3 << 20}, dtype::u8);
  m.take("whole", dtype::bf16, {}, {1000, 1100});
  m.take("columns", dtype::bf16, box_of({0, 256}, {1200, 256}), {1200, 256});
  m.take("columns", dtype::bf16, box_of({100, 0}, {7, 1024}), {7, 1024});
  m.take("columns", dtype::bf16, {}, {1200, 1024}); // again, as a whole
  m.take("rows", dtype::f32, box_of({300, 0}, {100, 900}), {100, 900});
  m.take("cast", dtype::bf16, box_of({5, 3}, {700, 790}), {700, 790});
  m.take("turned", dtype::bf16, box_of({0, 449}, {700, 2}), {700, 2});
  m.take("deep", dtype::u8, box_of({1, 10, 0, 3}, {2, 20, 70, 101}), {2, 20, 70, 101});
  m.take("small", dtype::f32, box_of({3}, {2}), {2});
  m.take("scalar", dtype::f32, {}, {});
  m.take("empty", dtype::f32, {}, {0, 4});
  m.send(bucket);
  return m;
}

} // namespace

TEST_CASE("what is packed, and what arrives in boxes of every kind, adds up to what was at the source") {
  for (std::uint64_t const bucket :
       {std::uint64_t(100'000), std::uint64_t(1) << 20, std::uint64_t(5) << 20}) {
    auto const m = many(bucket);
    auto const source = m.of_source();
    CHECK(m.chunks->chunks() == 3 + 3 + 3 + 2 + 2 + 3 + 1 + 1 + 0 + 3);
    sums packed(m.chunks->chunks());
    m.add_slots(slot_digests(*m.layout, *m.chunks, device::host()), packed);
    CHECK(packed == source);
    for (bool const mapped : {false, true}) {
      digest_checks const boxes(*m.layout, *m.chunks, *m.places);
      CHECK(boxes.first_difference(m.received(boxes, mapped), source) == nullptr);
    }
    digest_checks const by_hand(*m.layout, *m.chunks);
    CHECK(by_hand.checks().size() == m.chunks->chunks());
    CHECK(by_hand.of_destinations().empty());
    CHECK(by_hand.first_difference(m.received(by_hand, false), source) == nullptr);
  }
}

TEST_CASE("a byte that arrives wrong in a destination is found, and named with its box") {
  auto m = many(300'000);
  auto const source = m.of_source();
  digest_checks const checks(*m.layout, *m.chunks, *m.places);
  for (std::size_t i = 0; i < m.taken.size(); ++i) {
    if (m.taken[i].empty()) continue;
    for (bool const mapped : {false, true}) {
      auto const at = mapped ? m.taken[i].size() - 1 : m.taken[i].size() / 3;
      m.taken[i][at] ^= std::byte{0x10};
      auto const* const wrong = checks.first_difference(m.received(checks, mapped), source);
      REQUIRE(wrong != nullptr);
      CHECK(m.layout->tensors()[wrong->tensor].name == m.into[i].tensor);
      auto const words = checks.words(*wrong);
      CHECK(words.find("\"" + m.into[i].tensor + "\"") != std::string::npos);
      auto const part = m.into[i].part ? "box " + to_string(*m.into[i].part) : std::string();
      CHECK(words.find(part) != std::string::npos);
      m.taken[i][at] ^= std::byte{0x10};
    }
  }
  // Two elements of a column that changed places, and two rows.
  std::swap(m.taken[1][0], m.taken[1][512]);
  CHECK(checks.first_difference(m.received(checks, false), source) != nullptr);
  std::swap(m.taken[1][0], m.taken[1][512]);
  std::swap_ranges(m.taken[4].begin(), m.taken[4].begin() + 3600, m.taken[4].begin() + 3600);
  auto const* const wrong = checks.first_difference(m.received(checks, false), source);
  REQUIRE(wrong != nullptr);
  CHECK(checks.words(*wrong) == "tensor \"rows\", box [300+100, 0+900], within bytes 1048576 to 2097152");
}

TEST_CASE("of a large tensor only those chunks are compared, and read, that the box touches") {
  model m;
  m.tensor("large", dtype::u8, {2, 4, 1 << 20}, dtype::u8);
  m.take("large", dtype::u8, box_of({0, 1, 10}, {2, 1, 1000}), {2, 1, 1000});
  m.send(std::uint64_t(16) << 20);
  digest_checks const checks(*m.layout, *m.chunks, *m.places);
  REQUIRE(checks.checks().size() == 2);
  CHECK(checks.checks()[0].chunk == 1);
  CHECK(checks.checks()[1].chunk == 5);
  std::uint64_t read = 0;
  for (auto const& op : checks.of_slots(nullptr, device::host())) read += memory::bytes_of(op);
  CHECK(read == 2 * (chunk_bytes - 1000));
  CHECK(checks.first_difference(m.received(checks, false), m.of_source()) == nullptr);
}

TEST_CASE("what is mapped needs no slots, and what is not, needs them") {
  auto const m = many(300'000);
  placement where;
  where.tensors.resize(m.views.size());
  for (std::uint32_t t = 0; t < m.views.size(); t += 2) where.tensors[t].segment = 0;
  digest_checks const checks(*m.layout, *m.chunks, *m.places);
  sums all(checks.checks().size());
  perform(checks.of_destinations(), all);
  m.add_slots(checks.of_slots(&where, device::host()), all);
  std::vector<memory::digest_op> ops;
  for (std::uint32_t t = 0; t < m.views.size(); ++t)
    if (where.tensors[t].mapped()) checks.of_source(t, m.views[t], ops);
  perform(ops, all);
  CHECK(checks.first_difference(all, m.of_source()) == nullptr);
}

TEST_CASE("names, types and shapes matter to the whole, and the order of tensors does not") {
  auto const whole_of = [](std::vector<tensor_info> infos) {
    auto const layout = manifest::cut(std::move(infos), 1 << 20);
    chunk_table const chunks(layout);
    sums of(chunks.chunks()); // by name: a tensor has the same wherever it stands
    for (std::uint32_t t = 0; t < layout.tensors().size(); ++t)
      for (auto i = chunks.first(t); i < chunks.first(t + 1); ++i)
        of[i].lanes = {layout.tensors()[t].name == "b" ? 2u : 1u, 7u};
    return to_string(chunks.whole(of));
  };
  auto const one = whole_of({{"a", dtype::f32, {4, 6}}, {"b", dtype::u8, {8}}});
  CHECK(one == whole_of({{"a", dtype::f32, {4, 6}}, {"b", dtype::u8, {8}}}));
  CHECK(one == whole_of({{"b", dtype::u8, {8}}, {"a", dtype::f32, {4, 6}}}));
  CHECK(one != whole_of({{"a", dtype::f32, {6, 4}}, {"b", dtype::u8, {8}}}));
  CHECK(one != whole_of({{"a", dtype::i32, {4, 6}}, {"b", dtype::u8, {8}}}));
  CHECK(one != whole_of({{"c", dtype::f32, {4, 6}}, {"b", dtype::u8, {8}}}));
  CHECK(one != whole_of({{"a", dtype::f32, {4, 6}}, {"b", dtype::u8, {8}}, {"e", dtype::u8, {0}}}));
}

TEST_CASE("packed elements are digested as they lie, whole") {
  model m;
  m.tensor("f4", dtype::f4, {3 << 20}, dtype::f4);
  m.take("f4", dtype::f4, {}, {3 << 20});
  m.send(300'000);
  auto const source = m.of_source();
  CHECK(source.size() == 2);
  digest_checks const checks(*m.layout, *m.chunks, *m.places), by_hand(*m.layout, *m.chunks);
  CHECK(checks.first_difference(m.received(checks, false), source) == nullptr);
  CHECK(by_hand.first_difference(m.received(by_hand, false), source) == nullptr);
}
