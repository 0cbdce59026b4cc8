// What is done in which order: at random, and for the measurements. Part of ropeway; Apache-2.0.
#include <algorithm>
#include <array>
#include <csignal>

#include "conductor.hpp"

namespace ropeway::soak {
namespace {

constexpr std::uint64_t even_layouts = 6; // more than either side keeps the plans of
/// After so many updates each layout was sent five times, and what both sides keep of the last few is the
/// same again.
constexpr std::uint64_t cycle = 5 * even_layouts;
constexpr std::uint64_t warm_updates = 4 * cycle, warm_rounds = 20;

/// Later senders give lower numbers: a version is a label inside a sender instance.
std::uint64_t version_of(std::uint32_t instance, std::uint64_t update) {
  return (std::uint64_t(0x7fffffff - instance) << 32) | update;
}

} // namespace

order conductor::plain_order(std::uint64_t layout, way how) {
  order now;
  now.what = verb::send;
  now.update = static_cast<std::uint32_t>(update_);
  now.version = version_of(instance_, update_);
  now.layout = layout;
  now.how = how;
  // Memory of a device is mapped as it is; at random, plan_memory() decides.
  if (of_.how != mode::random && !of_.where.is_cuda()) now.shared = static_cast<sharing>(layout % 3);
  return now;
}

void conductor::plan_sender(order& now, chance& luck) {
  now.partial = luck.one_in(8) && make_layout(of_.seed, now.layout, false).tensors.size() >= 2;
  if (!luck.one_in(12)) return;
  auto const dice = luck.below(10);
  now.micros = static_cast<std::uint32_t>(luck.below(luck.one_in(2) ? 500 : 8000));
  now.bucket = static_cast<std::uint32_t>(luck.below(luck.one_in(2) ? 3 : 20));
  static constexpr std::array moments{moment::announced, moment::bucket, moment::timer};
  now.when = moments[luck.below(moments.size())];
  if (dice < 4) {
    now.goes_wrong = fault::cancel;
  } else if (dice < 7) {
    now.goes_wrong = fault::source;
    now.how = luck.one_in(2) ? way::source : way::writer;
  } else if (dice < 9 || silence_ != short_silence) {
    now.goes_wrong = fault::kill;
  } else {
    now.goes_wrong = fault::stall;
  }
}

void conductor::plan_receiver(child& who, order const& to_sender, chance& luck) {
  auto& now = who.now;
  now = {};
  now.into = static_cast<style>(luck.below(static_cast<std::uint64_t>(style::count)));
  now.keep = static_cast<std::uint32_t>(luck.below(5));
  now.micros = static_cast<std::uint32_t>(luck.below(luck.one_in(2) ? 500 : 8000));
  now.bucket = static_cast<std::uint32_t>(luck.below(luck.one_in(2) ? 3 : 20));
  if (to_sender.partial && now.into == style::whole && luck.one_in(2)) now.into = style::boxes;
  if (!luck.one_in(5)) return;
  bool const lives = who.slot == 0;
  // A stall takes seconds, so there are few.
  static constexpr std::array all{fault::refuse, fault::refuse, fault::not_now, fault::not_now, fault::loader,
                                  fault::loader, fault::drop,   fault::drop,    fault::cancel,  fault::cancel,
                                  fault::cancel, fault::kill,   fault::kill,    fault::kill,    fault::leave,
                                  fault::nap,    fault::nap,    fault::stall};
  now.goes_wrong = all[luck.below(all.size())];
  now.when = static_cast<moment>(luck.below(static_cast<std::uint64_t>(moment::count)));
  if (now.goes_wrong == fault::stall && silence_ != short_silence) now.goes_wrong = fault::nap;
  if (lives && (now.goes_wrong == fault::kill || now.goes_wrong == fault::leave))
    now.goes_wrong = fault::cancel;
  if (now.goes_wrong == fault::loader || (now.goes_wrong == fault::drop && now.bucket != 0))
    now.into = style::buckets;
  if (now.when == moment::committing) now.into = style::buckets;
}

void conductor::plan_memory(order& now, chance& luck) {
  if (of_.where.is_cuda()) return;
  now.shared = static_cast<sharing>(luck.below(static_cast<std::uint64_t>(sharing::count)));
  now.moves = luck.one_in(3);
  bool const quiet = now.goes_wrong == fault::none && std::ranges::all_of(receivers_, [](auto const& one) {
                       return one->now.goes_wrong == fault::none;
                     });
  now.release = quiet && luck.one_in(4);
}

void conductor::random_update(chance& luck) {
  if (!sender_ || sender_->gone) {
    sender_.reset();
    start_sender();
    open_some_ring(luck);
  } else if (luck.one_in(25)) {
    close_ring();
    if (luck.one_in(2)) {
      sender_->may_exit = true;
      order_only(*sender_, verb::quit);
      until([&] { return sender_->gone; }, "the sender to end");
      start_sender();
    }
    open_some_ring(luck);
  }
  for (std::size_t slot = 0; slot < 5; ++slot) {
    auto* const there = receiver_in(slot);
    bool const comes = luck.one_in(2), late = luck.one_in(3), goes = luck.one_in(60), dies = luck.one_in(2);
    if (!there) {
      if (!comes && slot != 0) continue;
      spawn(false, slot).late = late && slot != 0;
    } else if (goes && slot != 0) {
      if (dies) {
        kill_now(*there);
        ++counted_.faults["kill, idle"];
      } else {
        leave_now(*there);
      }
    }
  }
  bury();
  settle();
  if (recent_layouts_.empty() || luck.one_in(4)) {
    if (recent_layouts_.empty() || luck.one_in(2)) {
      recent_layouts_.push_back(++counted_.layouts);
      if (recent_layouts_.size() > 7) recent_layouts_.pop_front();
    } else {
      auto const at = recent_layouts_.begin() + std::ptrdiff_t(luck.below(recent_layouts_.size()));
      std::rotate(at, at + 1, recent_layouts_.end());
    }
  }
  auto to_sender = plain_order(recent_layouts_.back(),
                               static_cast<way>(luck.below(static_cast<std::uint64_t>(way::count))));
  plan_sender(to_sender, luck);
  for (auto& one : receivers_) plan_receiver(*one, to_sender, luck);
  plan_memory(to_sender, luck);
  carry_out(to_sender);
}

void conductor::run_random() {
  auto const end =
      began_ + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(of_.minutes * 60));
  for (update_ = 1; of_.updates == 0 || update_ <= of_.updates; ++update_) {
    if (of_.minutes > 0 && clock::now() >= end) break;
    chance luck(mix({of_.seed, 5, update_}));
    random_update(luck);
    if (update_ % every_ == 0 && sender_ && !sender_->gone) take_samples(update_);
    if (update_ % 500 == 0)
      std::fprintf(stderr, "update %llu after %.0f s\n", static_cast<unsigned long long>(update_), seconds());
  }
}
void conductor::take_plainly(child& who) {
  static constexpr std::array styles{style::whole, style::boxes, style::buckets};
  who.now = {};
  who.now.into = styles[who.slot % styles.size()];
  who.now.keep = 1;
}

void conductor::send_plainly(std::uint64_t layout, way how) {
  ++update_;
  settle();
  for (auto& one : receivers_) take_plainly(*one);
  auto to_sender = plain_order(layout, how);
  to_sender.release = of_.how == mode::flat && update_ % (5 * cycle) == 1; // long before the next look
  carry_out(to_sender);
}

void conductor::run_flat() {
  start_sender();
  open_ring(65536, 2, long_silence);
  for (std::size_t slot = 0; slot < 3; ++slot) spawn(false, slot);
  while (of_.updates == 0 || counted_.updates < of_.updates) {
    // Each layout five times, each time given in another way.
    auto const n = counted_.updates;
    send_plainly(1 + n / 5 % even_layouts, static_cast<way>(n % 5));
    if (update_ % every_ == 0) take_samples(update_);
    if (update_ < warm_updates) continue;
    if (update_ == warm_updates || update_ % cycle == 0) {
      compare_samples(*sender_, 0);
      for (auto& one : receivers_) compare_samples(*one, 0);
    }
  }
  counted_.layouts = even_layouts;
}

void conductor::run_restarts() {
  start_sender();
  open_ring(16384, 2, long_silence);
  for (std::size_t slot = 0; slot < 3; ++slot) spawn(false, slot);
  // Two layouts, so that a sender knows both after the two clean updates of the round that it comes in.
  auto const layout = [&] { return 1 + update_ % 2; };
  for (std::uint64_t round = 1; round <= of_.updates; ++round) {
    chance luck(mix({of_.seed, 6, round}));
    bool const hits_sender = of_.killed == victim::sender || (of_.killed == victim::both && round % 2 == 0);
    ++update_;
    settle();
    // Not prepared ones: they keep a manifest of their own as long as they live, which a new sender has not
    // yet.
    static constexpr std::array ways{way::views, way::started, way::source, way::writer};
    auto to_sender = plain_order(layout(), ways[luck.below(ways.size())]);
    for (auto& one : receivers_) take_plainly(*one);
    auto& struck = hits_sender ? to_sender : receiver_in(2)->now;
    struck.goes_wrong = fault::kill;
    struck.when = static_cast<moment>(luck.below(hits_sender ? 3 : 4));
    if (struck.when == moment::committing) struck.into = style::buckets;
    struck.bucket = static_cast<std::uint32_t>(luck.below(20));
    struck.micros = static_cast<std::uint32_t>(luck.below(4000));
    carry_out(to_sender);
    if (hits_sender) {
      start_sender();
      open_ring(16384, 2, long_silence);
      // A receiver that knows no layout makes the new sender keep the manifests that it will be asked for
      // later.
      kill_now(*receiver_in(2));
      bury();
    }
    spawn(false, 2);
    for (int clean = 0; clean < 2; ++clean) send_plainly(layout(), way::views);
    if (round % every_ == 0) take_samples(round);
    for (auto& one : receivers_)
      if (one->slot != 2) compare_samples(*one, warm_rounds);
    // A sender that is killed every other round has one round of a receiver's death to survive.
    if (!hits_sender || of_.killed == victim::both)
      compare_samples(*sender_, of_.killed == victim::receiver ? warm_rounds : 0);
  }
  counted_.layouts = 2;
}
} // namespace ropeway::soak
