#include "content_suite.hpp"

#include <numeric>

#include "plan/manifest.hpp"
#include "support/co_test.hpp"
#include "support/sanitized.hpp"

namespace ropeway::testing {

void run_at_every_depth(behaviour what, pairing const& how) {
  for (std::uint32_t slots : {1u, 2u, 3u}) {
    INFO(how.name << ", a ring of " << slots);
    setting const here{how, slots};
    run_to_end([&] { return what(here); }, std::chrono::seconds(60));
  }
}

std::vector<tensor_info> specs_of(std::vector<tensor_view> const& views) {
  std::vector<tensor_info> specs;
  for (auto const& view : views) specs.push_back({std::string(view.name()), view.wire_type(), view.dims()});
  return specs;
}

std::deque<model> blanks(setting const& how, std::vector<tensor_info> const& specs) {
  std::deque<model> models;
  for (auto const& lane : how.how.into) models.emplace_back(lane.memory, specs, 0);
  return models;
}

std::vector<destinations> into_all(std::deque<model>& models) {
  std::vector<destinations> all;
  for (auto& each : models) all.push_back(each.into());
  return all;
}

std::vector<tensor_info> many(std::size_t count, std::string const& prefix, dtype type, shape const& dims) {
  std::vector<tensor_info> specs;
  for (std::size_t i = 0; i < count; ++i) specs.push_back({prefix + "." + std::to_string(i), type, dims});
  return specs;
}

namespace {

void check_report(send_report const& report, std::uint64_t version, std::vector<tensor_info> const& specs,
                  std::uint64_t bucket_bytes, setting const& how) {
  CHECK(report.version == version);
  CHECK(report.tensors == specs.size());
  CHECK(report.bytes ==
        std::accumulate(specs.begin(), specs.end(), std::uint64_t(0),
                        [](auto sum, auto& spec) { return sum + byte_size(spec.type, spec.dims).value(); }));
  CHECK(report.buckets == plan::manifest::cut(specs, bucket_bytes).buckets().size());
  CHECK(report.receivers.size() == how.how.into.size());
  CHECK(report.count(outcome::committed) == how.how.into.size());
  CHECK(report.total.count() > 0);
  CHECK(report.source_free.count() > 0);
  CHECK(report.source_free <= report.total);
}

} // namespace

awaitable<void> crosses(setting const& how, model& source, std::vector<tensor_view> views,
                        std::uint64_t bucket_bytes) {
  auto const specs = specs_of(views);
  line over(co_await asio::this_coro::executor, how, quick_sender(bucket_bytes));
  co_await over.connect();

  auto held = blanks(how, specs);
  auto into = into_all(held);
  send_report const first = co_await deliver(over, 1, views, into);
  check_report(first, 1, specs, bucket_bytes, how);
  if (how.how.way && first.bytes != 0)
    for (auto const& one : first.receivers)
      CHECK_MESSAGE(one.way == *how.how.way, name(one.way), ": ", one.route_reason);
  auto const wanted = source.images(views);
  for (std::size_t i = 0; i < held.size(); ++i) {
    CHECK(difference(wanted, held[i]) == "");
    CHECK_FALSE(into[i].torn());
    CHECK(into[i].version() == 1);
    CHECK(over.receiver(i).version() == 1);
  }

  source.fill(2);
  auto const changed = source.images(views);
  std::vector<task<std::vector<image>>> takers;
  for (std::size_t i = 0; i < over.receivers(); ++i)
    takers.push_back(beside(over.executor(), take_next(over.receiver(i), *how.how.into[i].memory)));
  send_report const second = co_await over.sender().send_weights(2, views);
  check_report(second, 2, specs, bucket_bytes, how);
  for (auto& taker : takers) {
    auto const taken = co_await taker.join();
    CHECK_MESSAGE(taken.ok(), taken.said());
    if (taken.ok()) CHECK(difference(changed, *taken.value) == "");
  }
  co_await over.close();
}

awaitable<void> crosses(setting const& how, std::vector<tensor_info> specs, std::uint64_t bucket_bytes) {
  model source(how.how.from, std::move(specs), 1);
  auto views = source.views();
  co_await crosses(how, source, std::move(views), bucket_bytes);
}

awaitable<void> one_small_tensor(setting const& how) {
  std::vector<tensor_info> specs{{"w", dtype::f32, {5}}};
  co_await crosses(how, std::move(specs));
}

awaitable<void> three_in_one_bucket(setting const& how) {
  std::vector<tensor_info> specs{{"a", dtype::f32, {3}}, {"b", dtype::f32, {2, 2}}, {"c", dtype::f32, {7}}};
  CHECK(plan::manifest::cut(specs, 64 * kib).buckets().size() == 1);
  co_await crosses(how, std::move(specs));
}

awaitable<void> twenty_through_one_mib(setting const& how) {
  auto specs = many(20, "layer", dtype::f32, {128, 128});
  co_await crosses(how, std::move(specs), mib);
}

awaitable<void> mixed_dtypes(setting const& how) {
  std::vector<tensor_info> specs{{"f", dtype::f32, {9}},       {"b", dtype::bf16, {3, 3}},
                                 {"h", dtype::f16, {11}},      {"i", dtype::i8, {13}},
                                 {"m", dtype::boolean, {5}},   {"e", dtype::f8_e4m3, {17}},
                                 {"g", dtype::f8_e5m2, {3, 7}}};
  co_await crosses(how, std::move(specs));
}

awaitable<void> every_dtype(setting const& how) {
  std::vector<tensor_info> specs;
  for (int i = 0; i <= int(dtype::f4); ++i) {
    auto const type = static_cast<dtype>(i);
    specs.push_back({std::string(name(type)), type, {4, 3}});
    specs.push_back({std::string(name(type)) + " long", type, {16, 640}});
  }
  co_await crosses(how, std::move(specs), 4 * kib);
}

awaitable<void> no_tensors(setting const& how) {
  std::vector<tensor_info> specs;
  co_await crosses(how, std::move(specs));
}

awaitable<void> empty_and_scalar(setting const& how) {
  std::vector<tensor_info> specs{{"empty", dtype::f32, {0}},
                                 {"scalar", dtype::f64, {}},
                                 {"no rows", dtype::bf16, {0, 7}},
                                 {"w", dtype::u8, {3}},
                                 {"no columns", dtype::i64, {7, 0}}};
  co_await crosses(how, std::move(specs));
  std::vector<tensor_info> nothing{{"empty", dtype::f32, {0}}, {"flat", dtype::f4, {3, 0, 2}}};
  co_await crosses(how, std::move(nothing));
}

awaitable<void> exactly_one_bucket(setting const& how) {
  std::vector<tensor_info> one{{"w", dtype::u8, {64 * kib}}};
  CHECK(plan::manifest::cut(one, 64 * kib).buckets().size() == 1);
  co_await crosses(how, std::move(one));
  std::vector<tensor_info> two{{"v", dtype::f32, {8 * kib}}, {"w", dtype::f32, {8 * kib}}};
  CHECK(plan::manifest::cut(two, 64 * kib).buckets().size() == 1);
  co_await crosses(how, std::move(two));
}

awaitable<void> larger_than_the_bucket(setting const& how) {
  std::vector<tensor_info> specs{{"large first", dtype::f32, {9'000}}, {"small", dtype::f16, {7}},
                                 {"large", dtype::bf16, {77, 131}},    {"larger", dtype::u8, {40'001}},
                                 {"again", dtype::f64, {1'111}},       {"small too", dtype::i8, {3}},
                                 {"large last", dtype::f32, {5, 999}}};
  co_await crosses(how, std::move(specs), 4 * kib);
}

awaitable<void> larger_than_the_ring(setting const& how) {
  std::vector<tensor_info> specs{{"w", dtype::f32, {1'000'003}}};
  co_await crosses(how, std::move(specs), 64 * kib);
}

awaitable<void> odd_then_wide(setting const& how) {
  std::vector<tensor_info> specs{{"odd", dtype::f16, {3}},
                                 {"wide", dtype::f32, {4}},
                                 {"odder", dtype::u8, {1}},
                                 {"widest", dtype::f64, {2}}};
  co_await crosses(how, specs);
  co_await crosses(how, std::move(specs), 256); // the gap decides what fits
}

awaitable<void> tied_weights(setting const& how) {
  std::vector<tensor_info> specs{{"embedding", dtype::bf16, {64, 33}}};
  model source(how.how.from, std::move(specs), 1);
  auto const embedding = source.view(0);
  tensor_view const head("head", embedding.type(), embedding.dims(), embedding.data(), embedding.where());
  std::vector<tensor_view> views{embedding, head};
  co_await crosses(how, source, std::move(views), kib);
}

awaitable<void> twenty_thousand(setting const& how) {
  auto specs = many(rounds(20'000), "model.layers.weight", dtype::bf16, {37});
  co_await crosses(how, std::move(specs), mib);
}

awaitable<void> long_names(setting const& how) {
  std::vector<tensor_info> specs;
  // One, two, three and four bytes, a combining mark, a right-to-left letter, quotes, a line end.
  for (std::string unit :
       {"a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x9a\xa0", "e\xcc\x81", "\xd7\x90", "\"\\'", "\n\x01"}) {
    std::string name;
    while (name.size() + unit.size() <= 1024) name += unit;
    specs.push_back({name, dtype::f32, {4}});
  }
  co_await crosses(how, std::move(specs));
}

awaitable<void> names_refused(setting const& how) {
  model source(how.how.from, many(3, "layer", dtype::f32, {64}), 1);
  line over(co_await asio::this_coro::executor, how);
  co_await over.connect();
  auto views = source.views();
  for (std::string const bad : {"layer.0", "", "\xff", "a\xc0\x80", "\xed\xa0\x80"}) {
    auto const last = source.view(2);
    views[2] = tensor_view(bad, last.type(), last.dims(), last.data(), last.where());
    auto const sent = co_await try_to(over.sender().send_weights(1, views));
    CHECK(sent.error == make_error_code(bad == "layer.0" ? errc::duplicate_name : errc::invalid_argument));
    if (bad == "layer.0") CHECK_MESSAGE(sent.text.find("layer.0") != std::string::npos, sent.text);
  }
  auto held = blanks(how, source.specs());
  auto into = into_all(held);
  send_report const report = co_await deliver(over, 2, source.views(), into);
  CHECK(report.count(outcome::committed) == over.receivers());
  for (auto& each : held) CHECK(difference(source.images(), each) == "");
  co_await over.close();
}

awaitable<void> moved_tensor(setting const& how) {
  // Names and shapes stay; the memory is another place in the allocation, then another allocation.
  auto const specs = many(2, "w", dtype::f32, {3'000});
  model source(how.how.from, specs, 1), elsewhere(how.how.from, specs, 9);
  std::vector<tensor_view> views = source.views();
  auto const swapped = [&](model const& in) {
    std::vector<tensor_view> crossed;
    for (std::size_t i : {0u, 1u}) {
      auto const other = in.view(1 - i);
      crossed.emplace_back(specs[i].name, other.type(), other.dims(), other.data(), other.where());
    }
    return crossed;
  };
  line over(co_await asio::this_coro::executor, how, quick_sender(4 * kib));
  co_await over.connect();
  auto held = blanks(how, specs);
  auto into = into_all(held);
  co_await deliver(over, 1, views, into);
  for (auto& each : held) CHECK(difference(source.images(), each) == "");
  views = swapped(source);
  co_await deliver(over, 2, views, into);
  for (auto& each : held) CHECK(difference(source.images(views), each) == "");
  views = elsewhere.views();
  co_await deliver(over, 3, views, into);
  for (auto& each : held) CHECK(difference(elsewhere.images(), each) == "");
  co_await over.close();
}

awaitable<void> new_layout(setting const& how) {
  line over(co_await asio::this_coro::executor, how, quick_sender(4 * kib));
  co_await over.connect();
  std::uint64_t version = 0;
  for (auto const count : {3u, 1u, 40u, 0u, 3u}) {
    model const source(how.how.from, many(count, "w" + std::to_string(count), dtype::f16, {501}), count + 1);
    auto held = blanks(how, source.specs());
    auto into = into_all(held);
    send_report const report = co_await deliver(over, ++version, source.views(), into);
    CHECK(report.tensors == count);
    for (auto& each : held) CHECK(difference(source.images(), each) == "");
  }
  co_await over.close();
}

} // namespace ropeway::testing
