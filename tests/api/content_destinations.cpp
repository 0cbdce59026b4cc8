// Where tensors end up, and where they come from: destinations of all forms, prepared sets, sources.
// Part of ropeway; Apache-2.0.
#include <algorithm>
#include <array>

#include "content_suite.hpp"
#include "support/co_test.hpp"

namespace ropeway::testing {
namespace {

bool says(std::string const& text, std::string_view word) { return text.find(word) != std::string::npos; }

/// Sends `source` once; every lane loads into what `place(lane's model of `held_specs`)` names.
template <class Place>
awaitable<std::deque<model>> placed(setting const& how, model const& source,
                                    std::vector<tensor_info> held_specs, std::uint64_t bucket_bytes,
                                    Place place) {
  line over(co_await asio::this_coro::executor, how, quick_sender(bucket_bytes));
  co_await over.connect();
  auto held = blanks(how, held_specs);
  std::vector<destinations> into(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) place(held[i], into[i]);
  auto const views = source.views();
  co_await deliver(over, 1, views, into);
  co_await over.close();
  for (std::size_t i = 0; i < held.size(); ++i) {
    CHECK(held[i].guards_intact());
    CHECK_FALSE(into[i].torn());
  }
  co_return held;
}

/// The block of a matrix of `columns` columns that starts at (row, column).
std::vector<std::byte> block_of(std::vector<std::byte> const& matrix, std::uint64_t columns,
                                std::size_t element, std::array<std::uint64_t, 2> start,
                                std::array<std::uint64_t, 2> extent) {
  std::vector<std::byte> out;
  for (std::uint64_t r = start[0]; r < start[0] + extent[0]; ++r) {
    auto const first = matrix.begin() + std::ptrdiff_t((r * columns + start[1]) * element);
    out.insert(out.end(), first, first + std::ptrdiff_t(extent[1] * element));
  }
  return out;
}

awaitable<void> sharded(setting const& how, std::uint64_t rows, std::uint64_t columns,
                        std::uint64_t bucket_bytes) {
  std::vector<tensor_info> const specs{
      {"first", dtype::u8, {13}}, {"w", dtype::bf16, {rows, columns}}, {"last", dtype::f32, {3}}};
  model const source(how.how.from, specs, 1);
  std::uint64_t const half = rows / 2, third = columns / 3;
  std::vector<tensor_info> const wanted{{"upper rows", dtype::bf16, {half, columns}},
                                        {"lower rows", dtype::bf16, {rows - half, columns}},
                                        {"middle columns", dtype::bf16, {rows, third}},
                                        {"block", dtype::bf16, {2, third}}};
  std::array<std::array<std::uint64_t, 2>, 4> const starts{
      {{0, 0}, {half, 0}, {0, third}, {half, columns - third}}};
  auto const place = [&](model& held, destinations& into) {
    into.allow_unplaced();
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      auto const target = held.target(i);
      mutable_tensor_view const shard("w", target.type(), target.dims(), target.data(), target.where());
      into.add_part(starts[i], shard);
    }
  };
  auto const held = co_await placed(how, source, wanted, bucket_bytes, place);
  auto const matrix = source.bytes(1);
  for (auto const& each : held)
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      INFO(wanted[i].name);
      auto const shard = block_of(matrix, columns, 2, starts[i], {wanted[i].dims[0], wanted[i].dims[1]});
      CHECK(each.bytes(i) == shard);
    }
}

/// Makes each tensor on the spot, in memory that lives only as long as the library holds on to it.
class on_the_fly final : public tensor_source {
 public:
  on_the_fly(model const& whole, std::shared_ptr<memory_kind> memory)
      : whole_(whole), memory_(std::move(memory)) {}
  std::vector<tensor_info> manifest() override {
    ++runs_;
    return whole_.specs();
  }
  device where() const override { return memory_->where(); }
  awaitable<source_tensor> next(std::uint32_t index) override {
    auto const executor = co_await asio::this_coro::executor;
    co_await asio::post(executor, use_awaitable);
    std::vector<tensor_info> const one{whole_.specs()[index]};
    auto made = std::make_shared<model>(memory_, one, 0);
    made->put(0, whole_.bytes(index));
    alive_.push_back(made);
    std::erase_if(alive_, [](auto const& each) { return each.expired(); });
    most_alive_ = std::max(most_alive_, alive_.size());
    auto const view = made->view(0);
    co_return source_tensor(view, made);
  }
  int runs() const { return runs_; }
  std::size_t most_alive() const { return most_alive_; }
  bool any_alive() const {
    return !std::all_of(alive_.begin(), alive_.end(), [](auto const& each) { return each.expired(); });
  }

 private:
  model const& whole_;
  std::shared_ptr<memory_kind> memory_;
  std::vector<std::weak_ptr<model>> alive_;
  std::size_t most_alive_ = 0;
  int runs_ = 0;
};

} // namespace

awaitable<void> mismatches(setting const& how) {
  std::vector<tensor_info> const sent{{"right", dtype::f32, {4}},       {"other type", dtype::bf16, {4}},
                                      {"other shape", dtype::f32, {4}}, {"other rank", dtype::f32, {4}},
                                      {"not placed", dtype::f32, {4}},  {"layers.20", dtype::f32, {4}}};
  std::vector<tensor_info> const placed{{"right", dtype::f32, {4}},        {"other type", dtype::f16, {4}},
                                        {"other shape", dtype::f32, {5}},  {"other rank", dtype::f32, {2, 2}},
                                        {"nobody sends", dtype::f32, {4}}, {"layers.2", dtype::f32, {4}}};
  model source(how.how.from, sent, 1);
  line over(co_await asio::this_coro::executor, how);
  co_await over.connect();
  auto held = blanks(how, placed);
  auto into = into_all(held);
  std::vector<task<load_report>> loads;
  for (std::size_t i = 0; i < into.size(); ++i)
    loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
  auto const refused = co_await try_to(over.sender().send_weights(1, source.views()));
  CHECK(refused.error == make_error_code(errc::too_few_receivers));
  CHECK(refused.report.has_value());
  for (std::size_t i = 0; i < loads.size(); ++i) {
    auto const loaded = co_await loads[i].join();
    CHECK(loaded.error == make_error_code(errc::destination_mismatch));
    for (auto name :
         {"other type", "other shape", "other rank", "not placed", "nobody sends", "layers.20", "layers.2"})
      CHECK_MESSAGE(says(loaded.text, name), loaded.text);
    for (auto word : {"BF16", "F16", "[4]", "[5]", "[2, 2]"})
      CHECK_MESSAGE(says(loaded.text, word), loaded.text);
    CHECK_MESSAGE(!says(loaded.text, "right"), loaded.text);
    CHECK(held[i].untouched());
    CHECK_FALSE(into[i].torn());
    CHECK_FALSE(into[i].version().has_value());
    if (refused.report) {
      auto const& told = refused.report->receivers.at(i);
      CHECK(told.what == outcome::refused);
      CHECK_MESSAGE(says(told.text, "nobody sends"), told.text);
      CHECK_MESSAGE(says(told.text, "other type"), told.text);
    }
  }
  // The sessions live, and destinations that fit are taken.
  auto fitting = blanks(how, sent);
  auto all = into_all(fitting);
  co_await deliver(over, 2, source.views(), all);
  for (auto& each : fitting) CHECK(difference(source.images(), each) == "");
  co_await over.close();
}

awaitable<void> subsets(setting const& how) {
  std::vector<tensor_info> const specs{
      {"layers.2", dtype::f32, {40}}, {"layers.20", dtype::f32, {40}}, {"head", dtype::f32, {9}}};
  model source(how.how.from, specs, 1);
  line over(co_await asio::this_coro::executor, how);
  co_await over.connect();
  auto held = blanks(how, specs);
  std::vector<destinations> only_two(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) only_two[i].add(held[i].target(0)).allow_unplaced();
  co_await deliver(over, 1, source.views(), only_two);
  std::vector<image> const two{source.images()[0]};
  for (auto& each : held) {
    CHECK(difference(two, each) == "");
    CHECK(each.bytes(1) == std::vector<std::byte>(160, std::byte{0xa5}));
    CHECK(each.bytes(2) == std::vector<std::byte>(36, std::byte{0xa5}));
  }
  // An update of one tensor: the others stay as they are, and are not torn.
  source.fill(2);
  std::vector<destinations> all(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) {
    held[i].add_to(all[i]);
    all[i].allow_unsent();
  }
  std::vector<tensor_view> const head{source.view(2)};
  co_await deliver(over, 2, head, all);
  for (std::size_t i = 0; i < held.size(); ++i) {
    CHECK(difference(two, held[i]) == "");
    CHECK(held[i].bytes(2) == source.bytes(2));
    CHECK_FALSE(all[i].torn());
  }
  co_await over.close();
}

awaitable<void> shards(setting const& how) { co_await sharded(how, 8, 12, 64 * kib); }
awaitable<void> shards_of_large(setting const& how) { co_await sharded(how, 123, 77, kib); }

awaitable<void> ranks(setting const& how) {
  constexpr std::uint64_t rows = 12, columns = 20;
  std::vector<tensor_info> const specs{{"up", dtype::bf16, {rows, columns}},
                                       {"down", dtype::f32, {rows, columns}}};
  model const source(how.how.from, specs, 1);
  for (std::uint32_t rank = 0; rank < 4; ++rank) {
    std::vector<tensor_info> const wanted{{"up", dtype::bf16, {rows / 4, columns}},
                                          {"down", dtype::f32, {rows, columns / 4}}};
    auto const place = [&](model& held, destinations& into) {
      into.add_shard(0, rank, 4, held.target(0)).add_shard(1, rank, 4, held.target(1));
    };
    auto const held = co_await placed(how, source, wanted, kib, place);
    for (auto const& each : held) {
      CHECK(each.bytes(0) == block_of(source.bytes(0), columns, 2, {rank * 3, 0}, {3, columns}));
      CHECK(each.bytes(1) == block_of(source.bytes(1), columns, 4, {0, rank * 5}, {rows, 5}));
    }
  }

  // Three shards of 4 rows make 12, but 3 of 3 do not: refused before a byte moves.
  line over(co_await asio::this_coro::executor, how);
  co_await over.connect();
  std::vector<tensor_info> const small{{"up", dtype::bf16, {3, columns}}};
  auto held = blanks(how, small);
  std::vector<destinations> into(held.size());
  std::vector<task<load_report>> loads;
  for (std::size_t i = 0; i < held.size(); ++i) {
    into[i].allow_unplaced().add_shard(0, 1, 3, held[i].target(0));
    loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
  }
  auto const refused = co_await try_to(over.sender().send_weights(1, source.views()));
  CHECK(refused.error == make_error_code(errc::too_few_receivers));
  for (std::size_t i = 0; i < loads.size(); ++i) {
    auto const loaded = co_await loads[i].join();
    CHECK(loaded.error == make_error_code(errc::destination_mismatch));
    CHECK_MESSAGE(says(loaded.text, "[9, 20]"), loaded.text);
    CHECK(held[i].untouched());
  }
  co_await over.close();

  destinations none;
  auto const view = held[0].target(0);
  CHECK_THROWS_AS(none.add_shard(2, 0, 2, view), transfer_error);
  CHECK_THROWS_AS(none.add_shard(0, 2, 2, view), transfer_error);
  CHECK_THROWS_AS(none.add_shard(0, 0, 0, view), transfer_error);
  CHECK(none.size() == 0);
}

awaitable<void> tied_destinations(setting const& how) {
  std::vector<tensor_info> const specs{{"embedding", dtype::bf16, {64, 33}}, {"norm", dtype::f32, {33}}};
  model source(how.how.from, specs, 1);
  auto const named = [](tensor_view const& of, std::string_view name) {
    return tensor_view(name, of.type(), of.dims(), of.data(), of.where());
  };
  std::vector<tensor_view> const norm{source.view(1)};
  line over(co_await asio::this_coro::executor, how, quick_sender(kib));
  co_await over.connect();
  auto held = blanks(how, specs);
  std::vector<destinations> into(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) {
    auto const place = held[i].target(0);
    mutable_tensor_view const head("head", place.type(), place.dims(), place.data(), place.where());
    into[i].add(head).add(place).add(held[i].target(1)).allow_tied();
  }
  std::uint64_t version = 0;
  for (auto const& names : {std::vector<std::string>{"embedding", "head"}, {"embedding"}, {"head"}}) {
    source.fill(++version + 1);
    auto views = norm;
    for (auto const& name : names) views.push_back(named(source.view(0), name));
    co_await deliver(over, version, views, into);
    for (std::size_t i = 0; i < held.size(); ++i) {
      CHECK(difference(source.images(), held[i]) == "");
      CHECK(held[i].guards_intact());
      CHECK_FALSE(into[i].torn());
    }
  }

  // None of the names, or one with another shape: refused, and so are two names where that is not allowed.
  std::vector<tensor_view> wrong = norm, both = norm;
  wrong.push_back(source.view(0));
  wrong.emplace_back("head", dtype::bf16, shape{33, 64}, source.view(0).data(), source.view(0).where());
  both.push_back(source.view(0));
  both.push_back(named(source.view(0), "head"));
  struct refusal {
    std::vector<tensor_view> const& sent;
    std::string_view words;
    bool allowed;
  };
  for (auto const& [sent, words, allowed] :
       {refusal{norm, "\"embedding\" is not sent", true},
        refusal{wrong, "needs a destination of shape [33, 64]", true},
        refusal{both, "of tied weights, load one or allow them", false}}) {
    std::vector<task<load_report>> loads;
    for (std::size_t i = 0; i < into.size(); ++i)
      loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i].allow_tied(allowed))));
    auto const refused = co_await try_to(over.sender().send_weights(++version, sent));
    CHECK(refused.error == make_error_code(errc::too_few_receivers));
    for (auto& load : loads) {
      auto const loaded = co_await load.join();
      CHECK(loaded.error == make_error_code(errc::destination_mismatch));
      CHECK_MESSAGE(says(loaded.text, words), loaded.text);
    }
  }
  // Where destinations need not be sent, those that are tied stay as they are together.
  for (auto& one : into) one.allow_tied().allow_unsent();
  auto const before = source.bytes(0);
  source.fill(++version + 1);
  co_await deliver(over, version, norm, into);
  for (auto const& one : held) {
    CHECK(one.bytes(0) == before);
    CHECK(one.bytes(1) == source.bytes(1));
  }
  co_await over.close();
}

awaitable<void> fused(setting const& how) {
  std::vector<tensor_info> const specs{
      {"q", dtype::bf16, {8, 16}}, {"k", dtype::bf16, {2, 16}}, {"v", dtype::bf16, {2, 16}}};
  std::vector<tensor_info> const one{{"qkv", dtype::bf16, {12, 16}}};
  model const source(how.how.from, specs, 1);
  auto const place = [&](model& held, destinations& into) {
    auto const whole = held.target(0);
    auto* at = whole.data();
    for (auto const& spec : specs) {
      into.add(mutable_tensor_view(spec.name, spec.type, spec.dims, at, whole.where()));
      at += byte_size(spec.type, spec.dims).value();
    }
  };
  auto const held = co_await placed(how, source, one, 256, place);
  std::vector<std::byte> wanted;
  for (std::size_t i : {0u, 1u, 2u}) {
    auto const part = source.bytes(i);
    wanted.insert(wanted.end(), part.begin(), part.end());
  }
  for (auto const& each : held) CHECK(each.bytes(0) == wanted);
}

awaitable<void> strided_destinations(setting const& how) {
  // A transposed destination, and one whose rows are interleaved with another's.
  std::vector<tensor_info> const specs{
      {"w", dtype::f32, {30, 50}}, {"even", dtype::bf16, {20, 9}}, {"odd", dtype::bf16, {20, 9}}};
  std::vector<tensor_info> const kept{{"transposed", dtype::f32, {50, 30}},
                                      {"interleaved", dtype::bf16, {40, 9}}};
  model const source(how.how.from, specs, 1);
  auto const place = [&](model& held, destinations& into) {
    auto const transposed = held.target(0), rows = held.target(1);
    mutable_tensor_view w("w", dtype::f32, {30, 50}, transposed.data(), transposed.where());
    mutable_tensor_view even("even", dtype::bf16, {20, 9}, rows.data(), rows.where());
    mutable_tensor_view odd("odd", dtype::bf16, {20, 9}, rows.data() + 2 * 9, rows.where());
    into.add(w.strides({1, 30})).add(even.strides({18, 1})).add(odd.strides({18, 1}));
  };
  auto const held = co_await placed(how, source, kept, kib, place);
  auto const w = source.bytes(0), even = source.bytes(1), odd = source.bytes(2);
  std::vector<std::byte> turned(w.size()), mixed;
  for (std::size_t r = 0; r < 30; ++r)
    for (std::size_t c = 0; c < 50; ++c)
      std::copy_n(w.begin() + std::ptrdiff_t(4 * (r * 50 + c)), 4,
                  turned.begin() + std::ptrdiff_t(4 * (c * 30 + r)));
  for (std::ptrdiff_t r = 0; r < 20; ++r)
    for (auto const* from : {&even, &odd})
      mixed.insert(mixed.end(), from->begin() + r * 18, from->begin() + (r + 1) * 18);
  for (auto const& each : held) {
    CHECK(each.bytes(0) == turned);
    CHECK(each.bytes(1) == mixed);
  }
}

awaitable<void> prepared_set(setting const& how) {
  model source(how.how.from, many(50, "layer", dtype::f32, {333}), 1);
  line over(co_await asio::this_coro::executor, how, quick_sender(4 * kib));
  co_await over.connect();
  prepared_tensors const set = over.sender().prepare(source.views());
  CHECK(bool(set));
  auto held = blanks(how, source.specs());
  auto into = into_all(held);
  for (std::uint64_t version : {1u, 2u}) {
    source.fill(version);
    std::vector<task<load_report>> loads;
    for (std::size_t i = 0; i < into.size(); ++i)
      loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
    send_report const report = co_await over.sender().send_weights(version, set);
    CHECK(report.count(outcome::committed) == over.receivers());
    for (auto& load : loads) {
      auto const loaded = co_await load.join();
      CHECK_MESSAGE(loaded.ok(), loaded.said());
    }
    for (auto& each : held) CHECK(difference(source.images(), each) == "");
  }
  co_await over.close();
}

namespace {

/// Writes a model's bytes into the slots, in the memory of `memory`.
class copying_writer final : public slot_writer {
 public:
  copying_writer(model const& whole, std::shared_ptr<memory_kind> memory)
      : whole_(whole), memory_(std::move(memory)) {}
  std::vector<tensor_info> manifest() override { return whole_.specs(); }
  device where() const override { return memory_->where(); }
  awaitable<ready_after> fill(std::span<slot_piece const> pieces) override {
    auto const executor = co_await asio::this_coro::executor;
    for (slot_piece const& piece : pieces) {
      co_await asio::post(executor, use_awaitable);
      auto const bytes = whole_.bytes(piece.tensor);
      CHECK(reinterpret_cast<std::uintptr_t>(piece.data) % 256 == 0);
      memory_->write(piece.data, std::span(bytes).subspan(piece.tensor_offset, piece.bytes));
    }
    ++buckets_;
    co_return ready_after();
  }
  std::uint32_t buckets() const { return buckets_; }

 private:
  model const& whole_;
  std::shared_ptr<memory_kind> memory_;
  std::uint32_t buckets_ = 0;
};

} // namespace

awaitable<void> from_a_writer(setting const& how) {
  auto specs = many(40, "layer", dtype::f32, {700});
  specs.push_back({"large", dtype::bf16, {100, 100}});
  specs.push_back({"empty", dtype::u8, {0}});
  specs.push_back({"last", dtype::u8, {3}});
  model whole(host_memory(), specs, 1);
  copying_writer writer(whole, how.how.from);
  line over(co_await asio::this_coro::executor, how, quick_sender(8 * kib));
  co_await over.connect();
  auto held = blanks(how, specs);
  auto into = into_all(held);
  std::uint32_t buckets = 0;
  for (std::uint64_t version : {1u, 2u}) {
    whole.fill(version);
    std::vector<task<load_report>> loads;
    for (std::size_t i = 0; i < into.size(); ++i)
      loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
    send_report const report = co_await over.sender().send_weights(version, writer);
    CHECK(report.count(outcome::committed) == over.receivers());
    CHECK(report.tensors == specs.size());
    buckets += report.buckets;
    for (auto& load : loads) {
      auto const loaded = co_await load.join();
      CHECK_MESSAGE(loaded.ok(), loaded.said());
    }
    for (auto& each : held) CHECK(difference(whole.images(), each) == "");
  }
  CHECK(writer.buckets() == buckets);
  co_await over.close();
}

awaitable<void> from_a_source(setting const& how) {
  auto specs = many(60, "layer", dtype::f32, {700});
  specs.push_back({"large", dtype::bf16, {100, 100}});
  specs.push_back({"empty", dtype::u8, {0}});
  model whole(host_memory(), specs, 1);
  on_the_fly source(whole, how.how.from);
  line over(co_await asio::this_coro::executor, how, quick_sender(8 * kib));
  co_await over.connect();
  auto held = blanks(how, specs);
  auto into = into_all(held);
  for (std::uint64_t version : {1u, 2u}) {
    whole.fill(version);
    std::vector<task<load_report>> loads;
    for (std::size_t i = 0; i < into.size(); ++i)
      loads.push_back(beside(over.executor(), load_next(over.receiver(i), into[i])));
    send_report const report = co_await over.sender().send_weights(version, source);
    CHECK(report.count(outcome::committed) == over.receivers());
    CHECK(report.tensors == specs.size());
    for (auto& load : loads) {
      auto const loaded = co_await load.join();
      CHECK_MESSAGE(loaded.ok(), loaded.said());
    }
    for (auto& each : held) CHECK(difference(whole.images(), each) == "");
    CHECK_FALSE(source.any_alive());
  }
  CHECK(source.runs() == 2);
  // Three tensors go into a bucket; one bucket a slot can be in the making. The whole model never is.
  CHECK(source.most_alive() <= 4 * (how.slots + 1));
  co_await over.close();
}

} // namespace ropeway::testing
