#include <asio/post.hpp>

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <stdexcept>

#include "process.hpp"

namespace ropeway::soak {
namespace {

using testing::event;
using testing::memory_kind;

constexpr std::size_t holdings_kept = 8;
constexpr std::byte guard{0x5a};
constexpr std::uint64_t guard_bytes = 32;
constexpr char refusal[] = "the soak refuses", loader_words[] = "the soak's loader throws";

/// Destinations for one layout in one style, and the memory that they lie in.
class holding {
 public:
  holding(layout what, style how, std::string const& owner, role const& is, std::shared_ptr<memory_kind> kind)
      : what_(std::move(what)), how_(how), seed_(is.seed), kind_(std::move(kind)) {
    chance luck(mix({is.seed, 4, what_.number, std::uint64_t(how), std::hash<std::string>()(owner)}));
    for (std::uint32_t i = 0; i < what_.tensors.size(); ++i) choose(i, luck);
    std::uint64_t at = guard_bytes;
    for (auto& one : places_) {
      one.at = at;
      at = (at + one.bytes + guard_bytes + 15) / 16 * 16;
    }
    mirror_.assign(at, guard);
    memory_ = kind_->allocate(at);
    kind_->write(memory_.get(), mirror_);
    into_.allow_unplaced(how == style::subset);
    into_.allow_unsent(how != style::whole);
    for (auto const& one : places_) {
      auto const& sent = what_.tensors[one.tensor].sent;
      mutable_tensor_view const view(sent.name, sent.type, one.box.dims, memory_.get() + one.at,
                                     kind_->where());
      if (one.ranks != 0)
        into_.add_shard(one.dimension, one.rank, one.ranks, view);
      else if (one.whole)
        into_.add(view);
      else
        into_.add_part(std::span(one.box.start.data(), sent.dims.rank()), view);
    }
  }

  layout const& what() const { return what_; }
  style how() const { return how_; }
  destinations& into() { return into_; }

  /// An update has been committed into it.
  void committed(std::uint32_t update, std::vector<bool> const& sent) {
    for (auto& one : places_)
      if (sent[one.tensor]) one.holds = update;
  }
  /// What is not torn is byte for byte of the version that it is said to be of, and nothing lies beside it.
  std::string check(std::uint64_t& compared) {
    auto const names = into_.torn_tensors();
    std::set<std::string_view> const torn(names.begin(), names.end());
    if (into_.torn() == torn.empty()) return "torn() and torn_tensors() disagree";
    now_.resize(mirror_.size());
    kind_->read(now_, memory_.get());
    std::uint64_t at = 0;
    std::optional<std::pair<std::uint32_t, std::uint32_t>> made; // update and tensor that image_ is of
    for (auto& one : places_) {
      if (auto wrong = check_guard(at, one.at); !wrong.empty()) return wrong;
      at = one.at + one.bytes;
      if (torn.contains(what_.tensors[one.tensor].sent.name)) {
        one.holds.reset();
        continue;
      }
      if (!one.holds) continue; // nothing has come yet
      std::pair const wanted(*one.holds, one.tensor);
      if (made != wanted) make_wanted(seed_, *one.holds, what_, one.tensor, image_);
      made = wanted;
      cut_out(what_.tensors[one.tensor].sent, one.box, image_, cut_);
      compared += cut_.size();
      auto wrong = difference(cut_, std::span(now_).subspan(one.at, one.bytes));
      if (!wrong.empty())
        return std::string(what_.tensors[one.tensor].sent.name) + ", which should be of update " +
               std::to_string(*one.holds) + ": " + wrong;
    }
    return check_guard(at, now_.size());
  }

 private:
  struct place {
    std::uint32_t tensor = 0;
    part box;
    bool whole = true;
    std::size_t dimension = 0;
    std::uint32_t rank = 0, ranks = 0;
    std::uint64_t at = 0, bytes = 0;
    std::optional<std::uint32_t> holds; ///< the update
  };

  void add(std::uint32_t tensor, place made) {
    made.tensor = tensor;
    made.bytes = byte_size(what_.tensors[tensor].sent.type, made.box.dims).value();
    places_.push_back(made);
  }
  void choose(std::uint32_t i, chance& luck) {
    auto const& sent = what_.tensors[i].sent;
    auto const rank = sent.dims.rank();
    bool const opaque = bits(sent.type) % 8 != 0;
    place whole;
    whole.box.dims = sent.dims;
    if (how_ == style::subset && luck.one_in(2)) return;
    if (rank == 0 || opaque || how_ == style::whole || how_ == style::subset) return add(i, whole);
    std::array<std::uint64_t, max_rank> extents{};
    std::ranges::copy(sent.dims.extents(), extents.begin());
    std::span const dims(extents.data(), rank);
    std::size_t const d = luck.below(rank);
    if (how_ == style::shard) {
      place one;
      one.ranks = luck.one_in(2) ? 2 : 4;
      if (extents[d] == 0 || extents[d] % one.ranks != 0) return add(i, whole);
      one.rank = static_cast<std::uint32_t>(luck.below(one.ranks));
      one.dimension = d;
      extents[d] /= one.ranks;
      one.box.dims = shape(dims);
      one.box.start[d] = extents[d] * one.rank;
      one.whole = false;
      return add(i, one);
    }
    // Two boxes that make the whole, or one somewhere inside.
    place first, second;
    first.whole = second.whole = false;
    if (extents[d] >= 2 && luck.one_in(2)) {
      std::uint64_t const cut = luck.between(1, extents[d] - 1), all = extents[d];
      extents[d] = cut;
      first.box.dims = shape(dims);
      extents[d] = all - cut;
      second.box.dims = shape(dims);
      second.box.start[d] = cut;
      add(i, first);
      return add(i, second);
    }
    for (std::size_t k = 0; k < rank; ++k) {
      if (extents[k] == 0) continue;
      first.box.start[k] = luck.below(extents[k]);
      extents[k] = luck.between(1, extents[k] - first.box.start[k]);
    }
    first.box.dims = shape(dims);
    add(i, first);
  }
  std::string check_guard(std::uint64_t from, std::uint64_t to) const {
    auto const between = std::span(now_).subspan(from, to - from);
    if (std::ranges::all_of(between, [](std::byte one) { return one == guard; })) return {};
    return "bytes beside the destinations were written";
  }

  layout what_;
  style how_;
  std::uint64_t seed_;
  std::shared_ptr<memory_kind> kind_;
  std::vector<place> places_;
  std::vector<std::byte> mirror_, now_, image_, cut_;
  std::shared_ptr<std::byte> memory_;
  destinations into_; // before what it writes into
};

struct follower {
  follower(role const& as, any_io_executor on)
      : is(as)
      , executor(on)
      , orders(on)
      , strikes(on)
      , watches(strikes)
      , kind(memory_of(as.where))
      , may_connect(on)
      , idle(on) {
    receiver_options options;
    options.name(as.name).where(as.where).connect_limit(patient(std::chrono::seconds(60)));
    options.handshake_limit(patient(std::chrono::seconds(10)))
        .silence_limit(milliseconds(100))
        .watched_by(&watches);
    options.use_route(route_of(as.seed, as.name, as.even));
    chance luck(mix({as.seed, 8, hash_of(as.name)}));
    if (luck.one_in(4)) {
      copy_pace slow;
      slow.bytes_per_second(luck.between(20, 400) << 20);
      options.pace(slow);
    }
    if (!as.group.empty()) options.group(as.group).group_size(as.group_size);
    from.emplace(on, options);
    idle.set();
    came.exact = true; // nothing yet
  }
  role is;
  any_io_executor executor;
  ear orders;
  striker strikes;
  moves watches;
  std::shared_ptr<memory_kind> kind;
  std::deque<std::unique_ptr<holding>> holdings; // the newest last
  event may_connect;
  event idle; ///< no update is being taken
  order now;  ///< what was armed last
  answer came;
  bool told_of_commit = false;
  bool leaving = false, connected = false;
  std::vector<std::byte> image, piece; // scratch
  std::optional<receiver> from;        // after what it writes and calls

  holding& holding_for(std::uint64_t number, style how) {
    auto const found = std::ranges::find_if(
        holdings, [&](auto const& one) { return one->what().number == number && one->how() == how; });
    if (found != holdings.end()) {
      auto kept = std::move(*found);
      holdings.erase(found);
      holdings.push_back(std::move(kept));
    } else {
      if (holdings.size() == holdings_kept) holdings.pop_front();
      holdings.push_back(
          std::make_unique<holding>(make_layout(is.seed, number, is.even), how, is.name, is, kind));
    }
    return *holdings.back();
  }
};

/// Which tensors of the layout an update should bring, and that these are the ones announced.
std::vector<bool> expected(follower const& self, layout const& what, update const& next) {
  std::vector<bool> sent(what.tensors.size(), true);
  if (self.now.partial) sent = part_of(what, self.is.seed, self.now.update);
  std::size_t k = 0;
  auto const announced = next.tensors();
  for (std::size_t i = 0; i < sent.size(); ++i) {
    if (!sent[i]) continue;
    if (k == announced.size() || !(announced[k] == what.tensors[i].sent))
      throw std::runtime_error("the update announces other tensors than it should");
    ++k;
  }
  if (k != announced.size()) throw std::runtime_error("the update announces more tensors than it should");
  return sent;
}

/// Compares a bucket's views with what they must be.
class reader {
 public:
  reader(follower& self, layout const& what, std::vector<bool> const& sent) : self_(self), what_(what) {
    for (std::uint32_t i = 0; i < sent.size(); ++i)
      if (sent[i]) numbers_.push_back(i);
    seen_.resize(numbers_.size());
  }
  void look(bucket const& at) {
    for (auto const& piece : at.pieces()) {
      if (piece.tensor >= numbers_.size()) throw std::runtime_error("a piece of a tensor that there is not");
      auto const number = numbers_[piece.tensor];
      if (made_ != number) make_wanted(self_.is.seed, self_.now.update, what_, number, self_.image);
      made_ = number;
      if (piece.tensor_offset != seen_[piece.tensor])
        throw std::runtime_error("a piece is not the one that follows");
      seen_[piece.tensor] += piece.bytes;
      if (seen_[piece.tensor] > self_.image.size())
        throw std::runtime_error("a piece ends beyond its tensor");
      self_.piece.resize(piece.bytes);
      if (piece.where.is_cuda())
        self_.kind->read(self_.piece, piece.data);
      else
        std::memcpy(self_.piece.data(), piece.data, piece.bytes);
      auto const wrong =
          difference(std::span(self_.image).subspan(piece.tensor_offset, piece.bytes), self_.piece);
      if (!wrong.empty() && wrong_.empty())
        wrong_ = what_.tensors[number].sent.name + " in bucket " + std::to_string(at.number()) + ": " + wrong;
      self_.came.bytes += piece.bytes;
    }
  }
  /// Empty if all of it came and was right.
  std::string finish() const {
    if (!wrong_.empty()) return wrong_;
    for (std::size_t i = 0; i < numbers_.size(); ++i) {
      auto const& sent = what_.tensors[numbers_[i]].sent;
      if (seen_[i] != byte_size(sent.type, sent.dims).value()) return sent.name + " did not come as a whole";
    }
    return {};
  }

 private:
  follower& self_;
  layout const& what_;
  std::vector<std::uint32_t> numbers_;
  std::vector<std::uint64_t> seen_;
  std::optional<std::uint32_t> made_;
  std::string wrong_;
};

awaitable<load_report> take_buckets(follower& self, update& next, reader& looks) {
  auto const executor = co_await asio::this_coro::executor;
  auto const& now = self.now;
  std::deque<bucket> held;
  std::uint32_t number = 0;
  for (;;) {
    auto got = co_await try_to(next.next_bucket());
    if (!got.ok()) {
      if (got.error == make_error_code(errc::slots_held) && !held.empty()) {
        held.front().release();
        held.pop_front();
        continue;
      }
      throw transfer_error(got.error, got.text);
    }
    if (!*got.value) break;
    looks.look(**got.value);
    held.push_back(std::move(**got.value));
    self.strikes.bucket_moved();
    bool const fails = now.goes_wrong == fault::loader || now.goes_wrong == fault::drop;
    if (fails && number >= now.bucket) throw std::runtime_error(loader_words);
    while (held.size() > now.keep) {
      held.front().release();
      held.pop_front();
    }
    ++number;
  }
  held.clear();
  if (now.goes_wrong == fault::loader || now.goes_wrong == fault::drop)
    throw std::runtime_error(loader_words);
  if (!self.strikes.armed_for(moment::committing)) {
    load_report const report = co_await next.commit();
    co_return report;
  }
  // It has said that all is copied, and is gone before it hears the order to commit, or just after.
  auto commit = testing::beside(executor, next.commit());
  for (std::uint32_t i = 0; i < 1 + now.micros % 8; ++i) co_await asio::post(executor, use_awaitable);
  self.strikes.strike();
  auto const end = co_await commit.join();
  if (!end.ok()) throw transfer_error(end.error, end.text);
  co_return *end.value;
}

awaitable<void> leave_after(follower& self, std::chrono::microseconds while_) {
  asio::steady_timer timer(self.executor, while_);
  co_await timer.async_wait(use_awaitable);
  self.leaving = true;
  co_await self.from->close();
}

awaitable<void> take(follower& self, update next) {
  auto const executor = co_await asio::this_coro::executor;
  auto const& now = self.now;
  auto& came = self.came;
  auto const version = next.version();
  if (static_cast<std::uint32_t>(version) < now.update) co_return; // given up before it could be offered
  if (version != now.version) throw std::runtime_error("an update came that nobody announced");
  came.seen = true;
  self.strikes.announced();
  auto& into = self.holding_for(now.layout, now.into);
  auto const sent = expected(self, into.what(), next);
  auto const before = self.from->version();
  std::optional<reader> looks;
  attempt<load_report> end;
  if (now.goes_wrong == fault::refuse) {
    next.refuse(refusal);
  } else if (now.goes_wrong == fault::not_now) {
    next.not_now(milliseconds(10), refusal);
  } else if (now.goes_wrong == fault::drop && now.bucket == 0) {
    // `next` goes unanswered.
  } else {
    testing::task<void> leaving;
    if (now.goes_wrong == fault::leave)
      leaving = testing::beside(executor, leave_after(self, std::chrono::microseconds(now.micros)));
    bool const by_bucket = now.into == style::buckets;
    awaitable<load_report> work;
    if (by_bucket) {
      looks.emplace(self, into.what(), sent);
      work = take_buckets(self, next, *looks);
    } else {
      work = next.load_into(into.into());
    }
    if (now.goes_wrong == fault::cancel)
      co_await cancel_after(std::chrono::microseconds(now.micros), std::move(work), end);
    else
      co_await keep_end(std::move(work), end);
    if (now.goes_wrong == fault::loader && !end.ok()) next.refuse(end.text);
    if (now.goes_wrong == fault::leave) {
      auto const left = co_await leaving.join();
      static_cast<void>(left);
    }
  }
  { auto const gone = std::move(next); }
  came.committed = end.ok();
  came.code = end.error.value();
  came.category = end.error ? end.error.category().name() : "";
  came.text = end.text;
  std::string wrong;
  if (end.ok() != (self.from->version() == version))
    wrong = "version() does not agree with how the load ended: " + end.said();
  else if (!end.ok() && self.from->version() != before)
    wrong = "version() changed although nothing was committed";
  if (end.ok() && now.into != style::buckets) into.committed(now.update, sent);
  if (wrong.empty() && looks && end.ok()) wrong = looks->finish();
  if (wrong.empty()) wrong = into.check(came.bytes);
  came.exact = wrong.empty();
  if (!wrong.empty()) came.text = wrong;
}

/// One session after the other, until it leaves.
awaitable<void> attend(follower& self) {
  co_await self.may_connect.wait();
  while (!self.leaving) {
    auto const begun = co_await try_to(self.from->connect(self.is.path));
    if (self.leaving) break;
    // The sender may be killed or closed in the middle of the handshake.
    if (begun.error == make_error_code(errc::peer_gone) ||
        begun.error == make_error_code(errc::peer_refused) || begun.error == make_error_code(errc::not_open))
      continue;
    if (!begun.ok()) throw transfer_error(begun.error, "connecting: " + begun.text);
    self.connected = true;
    say_only(tell::connected);
    attempt<std::optional<update>> got;
    for (;;) {
      got = co_await try_to(self.from->next_update());
      if (!got.ok() || !*got.value) break;
      self.idle.reset();
      co_await take(self, std::move(**got.value));
      self.idle.set();
      if (self.leaving) break;
    }
    self.connected = false;
    answer lost;
    lost.what = tell::lost;
    lost.code = got.error.value();
    lost.category = got.error ? got.error.category().name() : "";
    lost.text = got.text;
    say(control_fd, lost);
  }
}

awaitable<void> obey(follower& self) {
  say_only(tell::ready);
  for (;;) {
    order const now = co_await self.orders.next();
    switch (now.what) {
    case verb::arm:
      // One that was given up at the sender may just be on its way to us: it ends first, and without a
      // commit.
      co_await self.idle.wait();
      if (!self.came.exact) throw std::runtime_error(std::string(self.came.text.view()));
      if (self.came.committed && !self.told_of_commit)
        throw std::runtime_error("a version was committed after its update was over");
      self.now = now;
      self.came = {};
      self.came.what = tell::came;
      self.came.update = now.update;
      self.came.exact = true;
      self.strikes.arm(now);
      say_only(tell::armed);
      break;
    case verb::connect: self.may_connect.set(); break;
    case verb::over:
      if (self.now.goes_wrong == fault::kill && self.strikes.armed()) self.strikes.strike();
      self.strikes.disarm();
      co_await self.idle.wait();
      say(control_fd, self.came);
      self.told_of_commit = self.came.committed;
      if (self.now.goes_wrong != fault::leave) break;
      self.leaving = true;
      self.may_connect.set();
      co_await self.from->close();
      co_return;
    case verb::sample: say(control_fd, sampled(self.is.where)); break;
    case verb::close:
    case verb::quit:
      self.leaving = true;
      self.may_connect.set();
      co_await self.from->close();
      co_return;
    default: throw std::runtime_error("an order that is none for a receiver");
    }
  }
}

} // namespace

route_choice route_of(std::uint64_t seed, std::string const& name, bool even) {
  if (even) return route_choice::automatic;
  chance luck(mix({seed, 7, hash_of(name)}));
  auto const dice = luck.below(8);
  if (dice < 2) return route_choice::staged;
  return dice == 2 ? route_choice::mapped : route_choice::automatic;
}

int follow(role const& as) {
  return run_process([&] {
    asio::io_context io(1);
    follower self(as, io.get_executor());
    std::exception_ptr failed;
    auto const ended = [&](std::exception_ptr error) {
      if (!error || failed) return;
      failed = error;
      io.stop();
    };
    asio::co_spawn(io, obey(self), ended);
    asio::co_spawn(io, attend(self), ended);
    io.run();
    self.from.reset();
    io.restart();
    if (!failed) io.run();
    if (failed) std::rethrow_exception(failed);
  });
}

} // namespace ropeway::soak
