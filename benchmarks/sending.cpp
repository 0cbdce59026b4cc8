#include "sending.hpp"

#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <atomic>
#include <iostream>
#include <memory>

#include "cli/background.hpp"
#include "cli/host_window.hpp"
#include "cli/load.hpp"
#include "ropeway/ropeway.hpp"

namespace ropeway::bench {
namespace {

using cli::in_background;
using work_type = std::function<void(std::atomic<bool> const&)>;

class announcement final : public observer {
 public:
  void update_began(std::uint64_t, std::uint64_t, std::uint32_t) override { at = now(); }
  double at = 0;
};

/// A lane's sender.
struct engine {
  engine(any_io_executor executor, lane const& one, model_memory const& held)
      : trainer(std::move(executor), one.of.socket, options_of(one.of, began)) {
    if (auto const* shared = held.shared()) share(trainer, *shared);
    if (one.of.prepared) prepared = trainer.prepare(held.views());
  }
  static sender_options options_of(plan const& of, announcement& began) {
    sender_options options;
    options.bucket_bytes(of.bucket_bytes).slots(of.slots).watched_by(&began);
    choose(options, of.routes.front());
    if (of.digest) options.digests(digest_choice::tensors);
    return options;
  }
  announcement began; // outlives the sender
  sender trainer;
  prepared_tensors prepared;
};

void judge_route(way asked, receiver_report const& one) {
  if (agrees(asked, one.way)) return;
  throw transfer_error(errc::unsupported,
                       std::string("asked for the ") + bench::name(asked) + " route, took " +
                           std::string(ropeway::name(one.way)) +
                           (one.route_reason.empty() ? "" : ", because: " + one.route_reason));
}

void judge(lane& to, std::uint64_t number, send_report const& report) {
  if (report.count(outcome::committed) != to.receivers.size()) {
    std::string words = "not every receiver committed version " + std::to_string(number);
    for (auto const& one : report.receivers)
      if (one.what != outcome::committed) words += "; " + one.name + ": " + one.text;
    throw transfer_error(errc::too_few_receivers, words);
  }
  for (auto const& one : report.receivers) {
    judge_route(to.of.routes.front(), one);
    to.taken = one.way;
    to.why = one.route_reason;
  }
}

struct sample {
  stage_times stages;
  double start = 0, end = 0, cpu = 0, source_free = 0, began = 0;
};

void keep(lane& to, sample const& one, std::vector<receiver_words> const& words) {
  to.each.resize(words.size());
  receiver_words const* slowest = &words.front();
  double cpu = 0;
  for (std::size_t i = 0; i < words.size(); ++i) {
    to.each[i].load.push_back(words[i].committed - words[i].announced);
    to.each[i].held_bytes = words[i].held_bytes;
    to.each[i].read_bytes = words[i].read_bytes;
    cpu += words[i].cpu_s;
    if (words[i].committed > slowest->committed) slowest = &words[i];
  }
  to.sender_stages.add(one.stages);
  to.receiver_stages.add(words.front().stages);
  to.send.push_back(one.end - one.start);
  to.source_free.push_back(one.source_free);
  to.sender_cpu.push_back(one.cpu);
  to.receivers_cpu.push_back(cpu);
  to.announce.push_back(one.began - one.start);
  to.notice.push_back(slowest->announced - one.began);
  if (slowest->moved != 0) to.copy.push_back(slowest->moved - slowest->announced);
  to.commit.push_back(slowest->committed - (slowest->moved != 0 ? slowest->moved : slowest->announced));
  to.report.push_back(one.end - slowest->committed);
}

awaitable<void> send_one(lane& to, engine& by, asio::thread_pool& pool,
                         std::vector<tensor_view> const& tensors, std::uint64_t number, bool counts) {
  sample one;
  send_report report;
  auto const cpu = cpu_seconds();
  one.start = now();
  if (by.prepared)
    report = co_await by.trainer.send_weights(number, by.prepared);
  else
    report = co_await by.trainer.send_weights(number, tensors);
  one.end = now();
  one.cpu = cpu_seconds() - cpu;
  one.stages = report.stages;
  one.source_free = std::chrono::duration<double>(report.source_free).count();
  one.began = by.began.at;
  judge(to, number, report);
  std::vector<receiver_words> words;
  work_type work = [&](std::atomic<bool> const&) {
    for (auto const& receiver : to.receivers) words.push_back(receiver.wait_words<receiver_words>());
  };
  co_await in_background(pool, std::move(work));
  to.last = words.front();
  if (counts) keep(to, one, words);
}

/// All of a lane's receivers, unless one of them ends instead of coming.
awaitable<void> all_there(lane const& one, sender& trainer) {
  for (int tries = 0; tries < 240; ++tries) {
    auto const waited = co_await trainer.wait_for_receivers(
        one.receivers.size(), std::chrono::milliseconds(500), compat::as_result);
    if (!std::get<0>(waited)) co_return;
    for (auto const& receiver : one.receivers) receiver.still_there();
  }
  throw transfer_error(errc::too_few_receivers, "the receivers' processes did not connect in two minutes");
}

awaitable<void> run(plan const& of, std::span<lane> lanes, std::vector<std::unique_ptr<engine>>& engines,
                    model_memory const& held, schedule const& when, asio::thread_pool& pool) {
  auto const tensors = held.views();
  for (std::size_t i = 0; i < lanes.size(); ++i) co_await all_there(lanes[i], engines[i]->trainer);
  for (std::uint64_t number = 1; number <= of.warm_up + of.repeats; ++number) {
    bool const counts = number > of.warm_up;
    if (when.before) {
      work_type work = [&](std::atomic<bool> const&) { when.before(number); };
      co_await in_background(pool, std::move(work));
    }
    bool enough = when.until_enough;
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      co_await send_one(lanes[i], *engines[i], pool, tensors, number, counts);
      enough = enough && lanes[i].last.enough;
    }
    if (when.after) {
      work_type work = [&](std::atomic<bool> const&) { when.after(number, counts); };
      co_await in_background(pool, std::move(work));
    }
    if (enough) break;
  }
  for (auto& one : engines) co_await one->trainer.close();
}

awaitable<void> send_once(plan const& of, sender& trainer, asio::thread_pool& pool, trainer_words& words) {
  cli::weights held;
  std::unique_ptr<model_memory> shared;
  // The loop runs meanwhile, so that the receiver can connect.
  work_type work = [&](std::atomic<bool> const& stop) {
    auto const file = checkpoint::open(of.model);
    words.opened = now();
    // As the file is in the page cache, going past that would be slower.
    read_options reading;
    reading.direct(false);
    if (of.memory == memory_kind::shared) {
      shared = std::make_unique<model_memory>(shapes(of), of.where, of.memory);
      words.ready = now();
      read_into(file, shared->mutable_views(), reading);
    } else {
      held = cli::weights(file, of.where);
      cli::host_window window(of.where);
      words.ready = now();
      std::function<void(std::uint64_t)> const progress = [](std::uint64_t) {};
      cli::load(file, held, window, progress, stop, reading);
    }
    words.loaded = now();
  };
  co_await in_background(pool, std::move(work));
  if (shared) share(trainer, *shared->shared());
  auto const tensors = shared ? shared->views() : held.views();
  co_await trainer.wait_for_receivers(1, std::chrono::minutes(2));
  words.joined = now();
  send_report const report = co_await trainer.send_weights(1, tensors);
  words.sent = now();
  if (report.count(outcome::committed) != 1)
    throw transfer_error(errc::too_few_receivers, "the receiver did not commit the first version");
  auto const& one = report.receivers.front();
  words.taken = one.way;
  judge_route(of.routes.front(), one);
  co_await trainer.close();
}

} // namespace

void stage_record::add(stage_times const& times) {
  for (auto const one : all_stages)
    seconds[static_cast<std::size_t>(one)].push_back(std::chrono::duration<double>(times[one]).count());
}

void send_all(plan const& of, std::span<lane> lanes, model_memory const& held, schedule const& when) {
  asio::io_context loop(1);
  asio::thread_pool pool(1);
  std::vector<std::unique_ptr<engine>> engines;
  for (auto const& one : lanes) engines.push_back(std::make_unique<engine>(loop.get_executor(), one, held));
  std::exception_ptr failed;
  asio::co_spawn(loop, run(of, lanes, engines, held, when, pool), [&](std::exception_ptr error) {
    failed = error;
    // Senders that still listen must not keep the loop.
    if (failed) loop.stop();
  });
  loop.run();
  if (failed) std::rethrow_exception(failed);
  for (auto& one : lanes)
    for (auto& receiver : one.receivers) receiver.finish();
}

void train_once(plan const& of, double entered) {
  trainer_words words;
  words.entered = entered;
  asio::io_context loop(1);
  sender_options options;
  options.bucket_bytes(of.bucket_bytes).slots(of.slots);
  choose(options, of.routes.front());
  if (of.digest) options.digests(digest_choice::tensors);
  sender trainer(loop.get_executor(), of.socket, options);
  asio::thread_pool pool(1);
  std::exception_ptr failed;
  asio::co_spawn(loop, send_once(of, trainer, pool, words), [&](std::exception_ptr error) {
    failed = error;
    if (failed) loop.stop();
  });
  loop.run();
  if (failed) std::rethrow_exception(failed);
  say_words(of.control, &words, sizeof words);
}

} // namespace ropeway::bench
