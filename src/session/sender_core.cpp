#include "session/sender_core.hpp"

#include <sys/random.h>

#include <algorithm>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/dispatch.hpp>
#include <asio/post.hpp>
#include <cstring>

#include "protocol/text.hpp"
#include "session/failpoint.hpp"
#include "session/initiating.hpp"

namespace ropeway::detail {
namespace {

using namespace protocol;
using session::failpoint;
using session::side;

bytes16 random_instance() {
  bytes16 id{};
  if (::getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size()))
    throw transfer_error(std::error_code(errno, std::system_category()),
                         "no random bytes for the sender's identity");
  return id;
}

failure send_runs() {
  return failure(errc::busy, "a send runs: its receivers read the memory that would be released");
}
failure version_is_held() {
  return failure(errc::busy, "a version is held, whose memory receivers may read: release it first");
}

sender_settings settings_of(sender_options const& options, bytes16 const& instance) {
  sender_settings settings;
  settings.instance = instance;
  settings.bucket_bytes = options.bucket_bytes();
  settings.slots = options.slots();
  settings.max_peers = options.max_receivers();
  settings.held_turnover = std::max(settings.held_turnover, settings.max_peers);
  settings.max_handshakes = options.max_handshakes();
  settings.handshake = options.handshake_limit();
  settings.decide = options.decide_limit();
  settings.silence = options.silence_limit();
  settings.commit = options.commit_limit();
  return settings;
}

sender_options checked(sender_options options) {
  auto const refuse = [](char const* what) { throw transfer_error(errc::invalid_argument, what); };
  constexpr std::uint64_t unit = plan::piece_alignment;
  if (options.bucket_bytes() < unit) refuse("bucket_bytes must be at least 256");
  if (options.bucket_bytes() > std::uint64_t(1) << 40) refuse("bucket_bytes must be at most 1 TiB");
  if (options.slots() < 1 || options.slots() > 64) refuse("slots must be 1 to 64");
  if (options.max_receivers() < 1 || options.max_receivers() > 1000)
    refuse("max_receivers must be 1 to 1000");
  if (options.max_handshakes() < 1 || options.max_handshakes() > 1000)
    refuse("max_handshakes must be 1 to 1000");
  for (auto const limit : {options.handshake_limit(), options.decide_limit(), options.silence_limit(),
                           options.commit_limit(), options.source_limit(), options.close_limit()})
    if (limit.count() <= 0) refuse("every limit must be positive");
  options.handshake_limit(countable(options.handshake_limit()))
      .decide_limit(countable(options.decide_limit()));
  options.silence_limit(countable(options.silence_limit())).commit_limit(countable(options.commit_limit()));
  options.source_limit(countable(options.source_limit())).close_limit(countable(options.close_limit()));
  // Slots start aligned as pieces do.
  options.bucket_bytes((options.bucket_bytes() + unit - 1) / unit * unit);
  return options;
}

std::chrono::nanoseconds since(std::chrono::steady_clock::time_point start) {
  return std::chrono::steady_clock::now() - start;
}

} // namespace

sender_core::sender_core(asio::any_io_executor executor, std::string path, sender_options options,
                         std::shared_ptr<memory::backends> memory)
    : executor_(executor)
    , path_(path)
    , options_(checked(std::move(options)))
    , observer_(options_.watched_by())
    , instance_(random_instance())
    , memory_(std::move(memory))
    , strand_(wire::make_strand(executor))
    , listener_(strand_, std::move(path), trust_of(options_))
    , machine_(settings_of(options_, instance_))
    , exports_(memory_)
    , lookout_(std::make_shared<session::lookout>(strand_))
    , packs_changed_(strand_)
    , deadline_(strand_)
    , close_limit_(strand_) {}

sender_core::~sender_core() {
  // What waits in the loop for a message holds its link.
  for (auto& [id, connected] : peers_) connected.link->close();
}

void sender_core::start() {
  if (options_.digests() != digest_choice::none) {
    auto done = [weak = weak_from_this()](session::copied& what, std::error_code error) {
      if (auto const self = weak.lock()) self->digested(what, error);
    };
    digester_ = std::make_shared<session::digester>(strand_, memory_, std::move(done));
  }
  auto acceptor = accept_peers(shared_from_this());
  asio::co_spawn(strand_, std::move(acceptor), asio::detached);
}

// ---- initiating calls, any thread ----

std::shared_ptr<session::layout> sender_core::last_layout() const {
  std::scoped_lock lock(shared_mutex_);
  return last_layout_;
}

void sender_core::keep_layout(std::shared_ptr<session::layout> layout) {
  std::scoped_lock lock(shared_mutex_);
  last_layout_ = std::move(layout);
}

void sender_core::rouse() {
  auto const last = sets_->last();
  if (!last || !last->where.is_cuda() || last->layout->manifest.total_bytes() < session::worth_looking_out)
    return;
  // Who sends from inside of a handler of ours is in the middle of something; begin() does it.
  if (strand_.running_in_this_thread()) return;
  asio::dispatch(strand_, [self = shared_from_this()] { self->rouse_receivers(); });
}

void sender_core::rouse_receivers() {
  if (closing_ || current_ || since(roused_) < session::answer_time) return;
  roused_ = clock::now();
  machine_.rouse(roused_);
  pump();
}

void sender_core::post_begin(std::shared_ptr<send_operation> operation) {
  asio::post(strand_,
             [self = shared_from_this(), operation = std::move(operation)] { self->begin(operation); });
}

void sender_core::post_stop(std::shared_ptr<send_operation> operation) {
  asio::post(strand_, [self = shared_from_this(), operation = std::move(operation)] {
    if (self->waiting_ == operation) {
      self->waiting_.reset();
      return self->fail_begin(operation, failure(aborted_by_caller(), "the send was cancelled"));
    }
    if (self->current_ != operation || operation->finished) return;
    self->give_up(aborted_by_caller(), errc::peer_aborted, "the sender cancelled the update");
  });
}

void sender_core::post_source_free(std::shared_ptr<send_operation> operation,
                                   std::unique_ptr<completion<nothing>> done,
                                   std::shared_ptr<stop_request> stop) {
  auto const shared = share(std::move(done));
  asio::post(strand_, [self = shared_from_this(), operation, shared, stop] {
    if (operation->source_is_free) return (*shared)->complete({}, {});
    if (operation->over) return (*shared)->complete(operation->error, {});
    self->wait_among({operation, &operation->on_source_free}, std::move(*shared), *stop);
  });
}

void sender_core::wait_among(std::shared_ptr<completions> others, std::unique_ptr<completion<nothing>> done,
                             stop_request& stop) {
  auto const key = done.get();
  others->push_back(std::move(done));
  stop.attach([self = shared_from_this(), others, key] {
    asio::post(self->strand_, [others, key] {
      auto const found =
          std::find_if(others->begin(), others->end(), [&](auto& w) { return w.get() == key; });
      if (found == others->end()) return;
      auto const cancelled = std::move(*found);
      others->erase(found);
      cancelled->complete(failure(aborted_by_caller()), {});
    });
  });
}

void sender_core::post_done(std::shared_ptr<send_operation> operation,
                            std::unique_ptr<completion<send_report>> done,
                            std::shared_ptr<stop_request> stop) {
  auto const shared = share(std::move(done));
  asio::post(strand_, [self = shared_from_this(), operation, shared, stop] {
    if (operation->on_done) {
      failure const busy(errc::busy, "sending::done is awaited already");
      return (*shared)->complete(busy, {});
    }
    if (operation->over) return (*shared)->complete(operation->error, operation->report);
    operation->on_done = std::move(*shared);
    stop->attach([self, operation] { self->post_stop(operation); });
  });
}

void sender_core::post_wait(std::size_t count, milliseconds limit,
                            std::unique_ptr<completion<std::size_t>> done,
                            std::shared_ptr<stop_request> stop) {
  auto const shared = share(std::move(done));
  asio::post(strand_, [self = shared_from_this(), count, limit = countable(limit), shared, stop] {
    if (self->closing_) return (*shared)->complete(failure(errc::not_open, "the sender is closed"), 0);
    auto const key = shared->get();
    auto timer = std::make_unique<wire::timer>(self->strand_, limit);
    auto const end = [weak = self->weak_from_this(), key](failure error) {
      auto const alive = weak.lock();
      if (!alive) return;
      auto& waiting = alive->waiters_;
      auto const found =
          std::find_if(waiting.begin(), waiting.end(), [&](auto& w) { return w.done.get() == key; });
      if (found == waiting.end()) return;
      auto const ended = std::move(found->done);
      waiting.erase(found);
      ended->complete(std::move(error), alive->machine_.greeted());
    };
    timer->async_wait([end, count](std::error_code error) {
      if (error) return;
      end(failure(errc::too_few_receivers, "fewer than " + std::to_string(count) +
                                               " receivers connected in time; start them or wait longer"));
    });
    self->waiters_.push_back({count, std::move(*shared), std::move(timer)});
    stop->attach([self, end] { asio::post(self->strand_, [end] { end(failure(aborted_by_caller())); }); });
    self->wake_waiters();
  });
}

void sender_core::post_receivers(std::unique_ptr<completion<std::vector<connected_receiver>>> done) {
  auto const shared = share(std::move(done));
  asio::post(strand_, [self = shared_from_this(), shared] {
    std::vector<connected_receiver> all;
    for (auto const& state : self->machine_.peers()) {
      connected_receiver one;
      one.name = state.name;
      one.holds_version = state.holds_version;
      one.version = state.version_held;
      all.push_back(std::move(one));
    }
    (*shared)->complete({}, std::move(all));
  });
}

void sender_core::post_share(std::shared_ptr<memory::shared_block const> block) {
  asio::post(strand_, [self = shared_from_this(), block = std::move(block)]() mutable {
    self->exports_.share(std::move(block));
  });
}

void sender_core::post_release(std::unique_ptr<completion<nothing>> done,
                               std::shared_ptr<stop_request> stop) {
  auto const shared = share(std::move(done));
  asio::post(strand_, [self = shared_from_this(), shared, stop] {
    if (self->closing_) return (*shared)->complete(failure(errc::not_open, "the sender is closed"), {});
    if (self->current_ && !self->current_->hold) return (*shared)->complete(send_runs(), {});
    if (self->hold_) return (*shared)->complete(version_is_held(), {});
    auto const key = shared->get();
    auto const end = [weak = self->weak_from_this(), key](failure error) {
      auto const alive = weak.lock();
      if (!alive) return;
      auto& waiting = alive->release_waiters_;
      auto const found =
          std::find_if(waiting.begin(), waiting.end(), [&](auto& w) { return w.done.get() == key; });
      if (found == waiting.end()) return;
      auto const ended = std::move(found->done);
      waiting.erase(found);
      ended->complete(std::move(error), {});
    };
    auto timer = std::make_unique<wire::timer>(self->strand_, self->options_.commit_limit());
    timer->async_wait([end](std::error_code error) {
      if (!error) end(failure(errc::peer_silent, "a receiver has not unmapped the sender's memory in time"));
    });
    self->release_waiters_.push_back({std::move(*shared), std::move(timer)});
    stop->attach([self, end] { asio::post(self->strand_, [end] { end(failure(aborted_by_caller())); }); });
    // A delivery of what is held no more is nothing that the trainer could wait for.
    self->interrupt_held("the trainer wants its memory back");
    self->settle();
    self->ask_for_release();
  });
}

/// Asks receivers for what they have mapped, once nothing runs that reads it.
void sender_core::ask_for_release() {
  auto const waits = [](release_waiter const& w) { return !w.asked; };
  if (current_ || std::none_of(release_waiters_.begin(), release_waiters_.end(), waits)) return;
  for (auto& waiter : release_waiters_) waiter.asked = true;
  machine_.retire_segments(exports_.release(), clock::now());
  pump();
}

/// Something has begun that will read it, before they were asked.
void sender_core::refuse_release(failure const& why) {
  for (auto& done : take_release_waiters(false)) done->complete(why, {});
}

void sender_core::wake_released() {
  if (machine_.unmapping() != 0) return;
  for (auto& done : take_release_waiters(true)) done->complete({}, {});
}

/// Those for whom receivers were `asked`, or were not yet.
sender_core::completions sender_core::take_release_waiters(bool asked) {
  completions taken;
  std::erase_if(release_waiters_, [&](release_waiter& waiter) {
    if (waiter.asked != asked) return false;
    taken.push_back(std::move(waiter.done));
    return true;
  });
  return taken;
}

void sender_core::post_close(std::unique_ptr<completion<nothing>> done) {
  auto const shared = share(std::move(done));
  asio::post(strand_, [self = shared_from_this(), shared] {
    self->on_closed_.push_back(std::move(*shared));
    if (self->closed_) return self->end_close();
    if (self->closing_) return;
    self->closing_ = true;
    self->close_limit_.expires_after(self->options_.close_limit());
    self->close_limit_.async_wait([weak = self->weak_from_this()](std::error_code error) {
      if (auto const alive = weak.lock(); alive && !error) alive->end_close();
    });
    if (self->current_ && !self->current_->because) {
      self->current_->because = aborted_by_caller();
      self->current_->error = failure(self->current_->because, "the sender was closed");
    }
    if (auto const waiting = std::exchange(self->waiting_, nullptr))
      self->fail_begin(waiting, failure(errc::not_open, "the sender is closed"));
    self->hold_.reset();
    failpoint<side::sender, "close">();
    self->machine_.close("the sender closed", clock::now());
    self->pump();
    self->settle();
    if (!self->current_) self->end_close();
  });
}

void sender_core::end_close() {
  if (!closed_) {
    closed_ = true;
    close_limit_.cancel();
    teardown();
  }
  for (auto& done : std::exchange(on_closed_, {})) done->complete({}, {});
}

void sender_core::teardown() {
  listener_.close();
  for (auto& [id, connected] : peers_)
    if (current_)
      connected.link->close(); // who reads its tensors must not commit them
    else
      connected.link->close_when_said();
  peers_.clear();
  deadline_.cancel();
  lookout_->rest();
  stop_packer();
  for (auto& waiter : std::exchange(waiters_, {}))
    waiter.done->complete(failure(errc::not_open, "the sender was closed"), 0);
  for (auto& waiter : std::exchange(release_waiters_, {}))
    waiter.done->complete(failure(errc::not_open, "the sender was closed"), {});
  if (digester_) digester_->finish();
  offload_.dispose(digests_.take());
  for (auto& [ordinal, gate] : gates_) gate->finish();
  gates_.clear();
  for (auto& [number, ring] : rings_) {
    if (ring.pack) ring.pack->finish();
    if (ring.relay) ring.relay->finish();
    // Unmapping and unregistering can take long. Copies that still run hold the memory that they touch.
    for (auto& registration : ring.registrations) offload_.dispose(std::move(registration));
    offload_.dispose(std::move(ring.shared.memory));
  }
  rings_.clear();
}

void sender_core::stop_packer() {
  if (!current_) return;
  current_->stopping = true;
  packs_changed_.notify();
  // A signal must not be emitted to a coroutine that has ended (Asio before 1.28).
  if (current_->packer_runs) stop_packer_.emit(asio::cancellation_type::terminal);
}

void sender_core::abandon() noexcept {
  observer_.forget();
  listener_.retire();
  std::vector<std::shared_ptr<copy_stream>> streams;
  {
    std::scoped_lock lock(shared_mutex_);
    abandoned_ = true;
    streams = all_streams_;
    // When this returns nobody may commit any more what it reads of our tensors.
    for (auto const& one : connections_)
      if (auto const cut = one.lock()) cut->cut();
  }
  bool drained = true;
  auto const end = clock::now() + memory::queue::drain_limit;
  for (auto const& stream : streams) drained = stream->shut(end) && drained;
  if (digester_) drained = digester_->shut(end) && drained;
  asio::post(strand_, [self = shared_from_this(), drained] {
    self->closing_ = true;
    self->hold_.reset();
    if (!drained) self->keep_for_ever();
    if (auto const waiting = std::exchange(self->waiting_, nullptr))
      self->fail_begin(waiting, failure(aborted_by_caller(), "the sender was destroyed"));
    if (auto const operation = self->current_) {
      operation->because = drained ? aborted_by_caller() : make_error_code(errc::device_failed);
      operation->error = failure(operation->because,
                                 drained ? "the sender was destroyed"
                                         : "the sender was destroyed while copies were stuck on the device; "
                                           "the tensors may still be read");
      operation->finished = true;
      self->end_close();
      for (auto const& stream : self->all_streams_) stream->forget();
      if (self->digester_) self->digester_->forget();
      if (operation->hold) {
        if (!drained) operation->hold->is_stuck(operation->error);
        self->let_go_of(*operation, drained ? failure() : operation->error);
      }
      if (!operation->packer_runs) self->complete(operation);
      return;
    }
    self->end_close();
  });
}

/// Copies could not be waited for: what they touch stays as long as the process.
void sender_core::keep_for_ever() {
  for (auto& [number, ring] : rings_) (void)new ring_memory(std::move(ring));
  rings_.clear();
  (void)new std::pair(digester_, digests_.take());
}

void sender_core::dissolve() noexcept {
  // All of these may own the sender, so that each can destroy us; our caller still holds us.
  auto const operation = std::exchange(current_, nullptr);
  auto const waiting = std::exchange(waiting_, nullptr);
  auto const hold = std::exchange(hold_, nullptr);
  auto const waiters = std::exchange(waiters_, {});
  auto const releasing = std::exchange(release_waiters_, {});
  auto const closing = std::exchange(on_closed_, {});
  for (auto const& one : {operation, waiting}) {
    if (!one) continue;
    one->undigested.clear(); // they own it
    auto const started = std::move(one->on_started);
    auto const source_free = std::move(one->on_source_free);
    auto const done = std::move(one->on_done);
    if (one->hold) auto const released = std::move(one->hold->on_released);
  }
}

// ---- one update ----

void sender_core::fail_begin(std::shared_ptr<send_operation> const& operation, failure error) {
  operation->error = std::move(error);
  operation->report.version = operation->version;
  operation->report.total = since(operation->called);
  operation->over = true;
  if (operation->on_started) operation->on_started->complete(operation->error, sending());
  if (operation->on_done) operation->on_done->complete(operation->error, operation->report);
  if (!operation->hold) return;
  // Somebody waits for it, and the trainer is to hear that it does not come.
  operation->hold->reading(false);
  auto const& report = operation->report;
  observer_.tell([&](observer& who) {
    who.update_began(report.version, report.bytes, report.buckets);
    who.update_sent(report);
    who.update_ended(report.version, false);
  });
  failpoint<side::sender, "held_failed">();
  machine_.held_failed(clock::now());
  pump();
}

void sender_core::begin(std::shared_ptr<send_operation> const& operation) {
  if (closing_) return fail_begin(operation, failure(errc::not_open, "the sender is closed"));
  if (waiting_ || (current_ && !current_->hold))
    return fail_begin(operation,
                      failure(errc::busy, "a send runs already: await it before the next, or cancel it"));
  if (operation->because) return fail_begin(operation, failure(operation->because));
  auto const& set = operation->set;
  if (set->error) return fail_begin(operation, set->error);
  if (set->layout && set->layout->sender != instance_)
    return fail_begin(operation,
                      failure(errc::invalid_argument,
                              "these tensors were prepared by another sender; prepare them with this one"));
  if (!current_) return begin_now(operation);
  // Who is being brought what is held gets this version instead, and it waits for no more than their copies.
  waiting_ = operation;
  interrupt_held("another version is about to be sent");
  settle();
}

/// What can be known before has been checked, and nothing runs.
void sender_core::begin_now(std::shared_ptr<send_operation> const& operation) {
  auto const set = operation->set;
  if (set->where.is_cuda() && set->layout->manifest.total_bytes() >= session::worth_looking_out)
    rouse_receivers();
  std::uint32_t ring = ring_of(set->where);
  update_facts facts;
  try {
    replace_failed_streams();
    if (set->on_the_fly()) {
      auto stated = set->source ? set->source->manifest() : set->writer->manifest();
      auto known = last_layout();
      auto const same = [&] {
        if (!known || known->manifest.tensors().size() != stated.size()) return false;
        return std::equal(stated.begin(), stated.end(), known->manifest.tensors().begin());
      };
      if (!same()) {
        known = std::make_shared<session::layout>(plan::manifest::cut(std::move(stated), slot_bytes()),
                                                  instance_);
        keep_layout(known);
      }
      set->layout = known;
      set->where = set->source ? set->source->where() : set->writer->where();
      ring = ring_of(set->where);
    }
    if (digester_) facts.digests = digests_.begin(set->layout, *memory_);
    if (ring != host_ring) // a missing device fails the send, not a receiver
      facts.device = memory_->get(device_of(ring))->uuid();
  } catch (...) {
    return fail_begin(operation,
                      failure(session::as_transfer_error(std::current_exception(), errc::source_failed)));
  }

  auto const& manifest = set->layout->manifest;
  current_ = operation;
  packs_.clear();
  copies_in_flight_ = 0;
  drain_asked_ = false;
  bytes_packed_ = 0;
  auto& report = operation->report;
  report.version = operation->version;
  report.bytes = manifest.total_bytes();
  report.tensors = static_cast<std::uint32_t>(manifest.tensors().size());
  report.buckets = static_cast<std::uint32_t>(manifest.buckets().size());

  facts.version = operation->version;
  facts.held = operation->hold != nullptr;
  // Who has started or holds a version may let go of it at any time, and changes the tensors then.
  facts.waited_for = !operation->hold && !operation->on_started;
  facts.layout = manifest.layout();
  facts.total_bytes = manifest.total_bytes();
  facts.tensors = report.tensors;
  facts.bucket_bytes = set->layout->bucket_sizes;
  facts.ring = ring;
  facts.through_host = options_.use_route() == route_choice::host;
  facts.only_mapped = options_.use_route() == route_choice::mapped;
  place_tensors(*operation, facts);
  if (facts.only_mapped && (facts.placement == 0 || !facts.note.empty()) && facts.total_bytes != 0) {
    current_.reset();
    return fail_begin(operation,
                      failure(errc::not_reachable, "the sender allows the mapped route only: " + facts.note));
  }
  operation->gather.emplace(manifest);
  if (set->on_the_fly()) {
    if (digester_) prepare_slot_digests(operation);
    operation->packer_runs = true;
    auto packer = pack_on_the_fly(shared_from_this(), operation);
    auto ended = [self = shared_from_this(), operation](std::exception_ptr error) {
      self->packer_ended(operation, error);
    };
    asio::co_spawn(strand_, std::move(packer),
                   asio::bind_cancellation_slot(stop_packer_.slot(), std::move(ended)));
  }

  operation->stages = session::stage_log(observer_, side::sender, operation->version);
  operation->stages.begins(update_stage::announce);
  observer_.tell([&](observer& who) { who.update_began(report.version, report.bytes, report.buckets); });
  failpoint<side::sender, "begin_update">();
  machine_.begin_update(std::move(facts), clock::now());
  pump();
}

void sender_core::place_tensors(send_operation& operation, update_facts& facts) {
  auto const& set = *operation.set;
  bool const allowed =
      options_.use_route() == route_choice::automatic || options_.use_route() == route_choice::mapped;
  if (facts.total_bytes == 0) return;
  if (!allowed)
    facts.note = "the sender was told to use the " + std::string(name(options_.use_route())) + " route";
  else if (set.on_the_fly())
    facts.note = "tensors that are made on the fly can't be mapped";
  if (!facts.note.empty()) return;
  std::vector<std::uint64_t> retired;
  auto placement = exports_.place(operation.set, retired);
  if (!retired.empty()) machine_.retire_segments(retired, clock::now());
  facts.note = placement->not_mapped;
  if (placement->segments.empty()) return;
  facts.placement = placement->id;
  facts.segments = placement->segments;
  facts.needed = placement->needed;
  facts.source_ready = is_ready(operation);
  operation.placement = std::move(placement);
}

/// Whether the caller's stream or event has come so far, as it has as a rule: who has waited for its
/// optimizer has nothing more on its stream. What can't be asked now is waited for, and fails there.
bool sender_core::is_ready(send_operation& operation) noexcept {
  auto const& when = operation.when;
  if (when.type() == ready_after::kind::nothing) return true;
  bool past = false;
  try {
    // What the caller named may be gone where the tensors are to be left alone.
    return operation.read([&] { past = memory_->get(when.where())->is_past(when); }) && past;
  } catch (...) { return false; }
}

// ---- what is held ----

void hold_operation::leave_alone(session::digester* digests) noexcept {
  std::shared_ptr<copy_stream> packs;
  {
    std::scoped_lock lock(mutex_);
    left_alone_ = true;
    if (!reading_) return;
    packs = packs_;
  }
  auto const end = std::chrono::steady_clock::now() + memory::queue::drain_limit;
  if (packs) packs->drain(end);
  if (digests) digests->drain(end);
}

void sender_core::post_hold(std::shared_ptr<hold_operation> hold) {
  asio::post(strand_, [self = shared_from_this(), hold = std::move(hold)] {
    if (self->closing_) return;
    if (hold->left_alone()) { // it took the place of the one before all the same
      if (auto const before = self->hold_) self->end_hold(before);
      return;
    }
    self->hold_ = hold;
    failpoint<side::sender, "hold">();
    self->machine_.hold(hold->version, clock::now());
    // Of the one before, whose delivery may run.
    self->interrupt_held("another version is held now");
    self->pump();
    self->settle();
  });
}

void sender_core::post_release_hold(std::shared_ptr<hold_operation> hold,
                                    std::unique_ptr<completion<nothing>> done,
                                    std::shared_ptr<stop_request> stop) {
  auto const shared = share(std::move(done));
  asio::post(strand_, [self = shared_from_this(), hold = std::move(hold), shared, stop] {
    self->end_hold(hold);
    if (!self->reads(*hold)) return (*shared)->complete(hold->stuck(), {});
    // Until the delivery has let go of it.
    self->wait_among({hold, &hold->on_released}, std::move(*shared), *stop);
  });
}

void sender_core::abandon_hold(std::shared_ptr<hold_operation> hold) noexcept {
  hold->leave_alone(digester_.get());
  asio::post(strand_, [self = shared_from_this(), hold = std::move(hold)] { self->end_hold(hold); });
}

/// It is the trainer's wish, or it was abandoned.
void sender_core::end_hold(std::shared_ptr<hold_operation> const& hold) {
  if (hold_ == hold) {
    hold_.reset();
    failpoint<side::sender, "end_hold">();
    machine_.end_hold(clock::now());
  }
  if (reads(*hold)) interrupt_held("the version is held no more");
  pump();
  settle();
}

bool sender_core::reads(hold_operation const& hold) const {
  return current_ && current_->hold.get() == &hold && !current_->source_is_free;
}

void sender_core::interrupt_held(std::string const& why) {
  if (current_ && current_->hold) give_up(aborted_by_caller(), errc::peer_aborted, why);
}

/// Its destructor has returned, or is about to: whoever reads the tensors by himself may have read what comes
/// after it, and must not commit that.
void sender_core::heed_left_alone() {
  if (current_ && current_->hold && reads(*current_->hold) && current_->hold->left_alone())
    interrupt_held("the version is held no more");
}

void sender_core::act(send_action::deliver_held&) { post_delivery(); }

/// Not from where it is asked for: the machine is in the middle of its actions. And a send that follows at
/// once goes first.
void sender_core::post_delivery() {
  asio::post(strand_, [self = shared_from_this()] { self->deliver_held(); });
}

void sender_core::deliver_held() {
  if (closing_ || current_ || !hold_ || hold_->left_alone() || !machine_.wants_held()) return;
  auto const operation = std::make_shared<send_operation>();
  operation->owner = weak_from_this();
  operation->executor = executor_;
  operation->hold = hold_;
  operation->version = hold_->version;
  operation->set = hold_->set;
  operation->when = hold_->when;
  operation->called = clock::now();
  hold_->reading(true);
  begin_now(operation);
  settle();
}

/// The delivery reads the tensors no more.
void sender_core::let_go_of(send_operation const& delivery, failure error) {
  delivery.hold->reading(false);
  for (auto& released : std::exchange(delivery.hold->on_released, {})) released->complete(error, {});
}

void sender_core::give_up(std::error_code code, errc on_wire, std::string text) {
  if (!current_ || current_->finished) return;
  if (!current_->because) {
    current_->because = code;
    current_->error = failure(code, text);
  }
  failpoint<side::sender, "give_up">();
  machine_.give_up(on_wire, std::move(text), clock::now());
  pump();
}

namespace {

template <class T>
struct delivery {
  T made{};
  std::exception_ptr error;
};

/// As a value: the operator || waits for the first success, so an exception would wait for the timer.
template <class T>
awaitable<delivery<T>> as_value(awaitable<T> work) {
  delivery<T> result;
  try {
    result.made = co_await std::move(work);
  } catch (...) { result.error = std::current_exception(); }
  co_return result;
}

/// The work of a source, which is cancelled at its limit.
template <class T>
awaitable<T> within(strand on, milliseconds limit, awaitable<T> work, std::string what) {
  using namespace compat::awaitable_operators;
  wire::timer timer(on, limit);
  auto first = co_await (as_value<T>(std::move(work)) || timer.async_wait(use_awaitable));
  if (first.index() == 1)
    throw transfer_error(errc::source_failed,
                         "the source did not " + what + " within " + std::to_string(limit.count()) + " ms");
  delivery<T> result = std::get<0>(std::move(first));
  if (result.error) std::rethrow_exception(result.error);
  co_return std::move(result.made);
}

} // namespace

namespace {

/// What a source delivered against what it announced.
void check_delivery(tensor_info const& announced, source_tensor const& delivered) {
  auto const& view = delivered.view;
  auto const refuse = [&](std::string const& how) {
    throw transfer_error(errc::source_failed,
                         "the source announced tensor " + announced.name + " and delivered " + how)
        .tensor(announced.name);
  };
  if (view.data() == nullptr) refuse("nothing");
  if (view.name() != announced.name) refuse("tensor " + std::string(view.name()));
  if (view.wire_type() != announced.type)
    refuse("it as " + std::string(name(view.wire_type())) + " instead of " +
           std::string(name(announced.type)));
  if (!(view.dims() == announced.dims))
    refuse("it as " + to_string(view.dims()) + " instead of " + to_string(announced.dims));
}

} // namespace

/// The first pack of an update waits for what the caller named.
sender_core::place sender_core::place_for(send_operation& operation, send_action::pack const& job) {
  std::uint32_t const number = ring_of(operation.set->where);
  auto const& ring = rings_.at(number);
  place result;
  result.stream = ring.pack;
  result.memory = ring.shared.memory;
  result.slot = slot(number, job.slot);
  // Where it is left alone, what is queued next is refused as well.
  if (!operation.ordered) operation.read([&] { result.stream->start_after(operation.when); });
  operation.ordered = true;
  if (operation.hold) operation.hold->reading(true, result.stream);
  return result;
}

/// Packs a bucket from tensors that are all there.
void sender_core::pack_views(send_action::pack const& job) {
  auto const& set = *current_->set;
  auto const at = place_for(*current_, job);
  device const where = device_of(ring_of(set.where));
  ops_.clear();
  auto const* const mapped = job.unmapped_only ? &current_->placement->what : nullptr;
  for (plan::piece const& piece : set.layout->manifest.pieces_of(job.bucket))
    if (!mapped || !mapped->tensors[piece.tensor].mapped())
      current_->gather->ops_for_piece(piece, set.views[piece.tensor], at.slot, where, ops_);
  queue_pack(current_, job, at, {});
}

void sender_core::queue_pack(std::shared_ptr<send_operation> const& operation, send_action::pack const& job,
                             place const& at, std::shared_ptr<void const> owners) {
  bool const queued = operation->read([&] {
    if (!ops_.empty())
      at.stream->copy(ops_, job.beside_link ? memory::effort::beside_link : memory::effort::full);
  });
  if (!queued) return;
  session::copied what;
  what.whose = operation;
  what.shown = {side::sender, update_stage::pack};
  what.from = std::move(owners);
  what.to = at.memory;
  what.slot = at.slot;
  what.seq = job.seq;
  what.bucket = job.bucket;
  what.bytes = operation->set->layout->manifest.buckets()[job.bucket].bytes;
  for (auto const& op : ops_) what.moved += memory::bytes_of(op);
  if (operation->set->writer) what.moved = what.bytes; // it is there already
  packing_starts(*operation);
  at.stream->then(std::move(what));
  ++copies_in_flight_;
}

void sender_core::packing_starts(send_operation& operation) {
  auto const now = clock::now();
  if (operation.packing.start(now) && operation.packing.ended() != clock::time_point())
    operation.stages.add(update_stage::wait, operation.packing.ended(), now);
}

void sender_core::packing_stops(send_operation& operation, clock::time_point now) {
  operation.packing.stop(now);
  if (!operation.packing.runs() && !operation.placement && !operation.stopping &&
      operation.buckets_packed < operation.report.buckets)
    operation.stages.begins(update_stage::wait);
}

/// A pack or a relay was seen to finish.
void sender_core::copied(bool relayed, session::copied& what, std::error_code error) {
  auto const operation = current_;
  if (!operation || operation != what.whose) return;
  --copies_in_flight_;
  if (what.what == session::copied::kind::source && !error) {
    failpoint<side::sender, "source_ready">();
    machine_.source_ready(clock::now());
    pump();
  } else if (what.what == session::copied::kind::source_to_digest && !error) {
    digest_tensors(operation, std::static_pointer_cast<session::digest_list const>(what.from), {});
  } else if (error) {
    give_up(error, errc::device_failed,
            std::string("the sender's device failed while ") + (relayed ? "relaying" : "packing") + ": " +
                error.message());
  } else if (relayed) {
    operation->stages.add(update_stage::relay, what.began, what.ended, what.bucket, what.bytes);
    failpoint<side::sender, "relayed">();
    machine_.relayed(what.seq, clock::now());
    pump();
  } else {
    bytes_packed_ += what.bytes;
    ++operation->buckets_packed;
    packing_stops(*operation, what.ended);
    operation->stages.add(update_stage::pack, what.began, what.ended, what.bucket, what.moved);
    if (!operation->first_packed) {
      operation->first_packed = what.ended;
      if (!operation->moves) operation->stages.begins(update_stage::publish);
    }
    observer_.tell([&](observer& who) {
      who.bucket_moved(operation->version, operation->report.buckets, bytes_packed_);
    });
    if (digest_packed(operation, what)) return settle();
    failpoint<side::sender, "packed">();
    machine_.packed(what.seq, clock::now());
    pump();
  }
  settle();
}

std::shared_ptr<copy_stream> sender_core::make_stream(memory::backend& of, device where, bool relays) {
  auto done = [weak = weak_from_this(), relays](session::copied& what, std::error_code error) {
    if (auto const self = weak.lock()) self->copied(relays, what, error);
  };
  return std::make_shared<copy_stream>(strand_, of.make_queue(), std::move(done), session::poll_time(where));
}

void sender_core::replace_failed_streams() {
  {
    std::scoped_lock lock(shared_mutex_);
    std::erase_if(all_streams_, [](auto const& stream) { return stream->failed(); });
  }
  std::erase_if(gates_, [](auto const& gate) { return gate.second->failed(); });
  if (digester_) digester_->replace_failed();
  for (auto& [number, ring] : rings_) {
    if (ring.relay && ring.relay->failed()) ring.relay.reset(); // made when it is needed
    if (!ring.pack->failed()) continue;
    auto made = make_stream(*ring.backend, device_of(number), false);
    std::scoped_lock lock(shared_mutex_);
    if (abandoned_) return;
    all_streams_.push_back(made);
    ring.pack = std::move(made);
  }
}

/// Packs buckets of tensors that are made meanwhile.
awaitable<void> sender_core::pack_on_the_fly(std::shared_ptr<sender_core> self, operation_pointer operation) {
  auto const buckets = operation->set->layout->manifest.buckets().size();
  delivered last;
  for (std::size_t packed = 0; packed < buckets && !operation->stopping; ++packed) {
    while (self->packs_.empty() && !operation->stopping) co_await self->packs_changed_.wait();
    if (operation->stopping) co_return;
    send_action::pack const job = self->packs_.front();
    self->packs_.erase(self->packs_.begin());
    packing_starts(*operation);
    if (operation->set->writer)
      co_await pack_by_writer(self, operation, job);
    else
      co_await pack_from_source(self, operation, job, last);
    packing_stops(*operation, clock::now());
  }
}

awaitable<void> sender_core::pack_from_source(std::shared_ptr<sender_core> self, operation_pointer operation,
                                              send_action::pack job, delivered& last) {
  auto& source = *operation->set->source;
  auto const& manifest = operation->set->layout->manifest;
  device const where = device_of(ring_of(operation->set->where));
  auto const at = self->place_for(*operation, job);
  auto const owners = std::make_shared<std::vector<std::shared_ptr<void const>>>();
  self->ops_.clear();
  for (plan::piece const& piece : manifest.pieces_of(job.bucket)) {
    if (last.index != piece.tensor) {
      auto next = source.next(piece.tensor);
      operation->asked_source = clock::now();
      operation->stages.begins(update_stage::source, job.bucket);
      last.tensor = co_await within<source_tensor>(self->strand_, self->options_.source_limit(),
                                                   std::move(next), "deliver its next tensor");
      operation->stages.add(update_stage::source, *std::exchange(operation->asked_source, std::nullopt),
                            clock::now(), job.bucket);
      // Another operation's step cannot come between: one packer runs at a time.
      check_delivery(manifest.tensors()[piece.tensor], last.tensor);
      last.index = piece.tensor;
      at.stream->start_after(last.tensor.when);
    }
    auto const& keep = last.tensor.keep_alive;
    if (keep && (owners->empty() || owners->back() != keep)) owners->push_back(keep);
    operation->gather->ops_for_piece(piece, last.tensor.view, at.slot, where, self->ops_);
  }
  if (!operation->stopping) self->queue_pack(operation, job, at, owners);
}

awaitable<void> sender_core::pack_by_writer(std::shared_ptr<sender_core> self, operation_pointer operation,
                                            send_action::pack job) {
  auto const at = self->place_for(*operation, job); // kept: a writer that is cancelled may take its time
  std::vector<slot_piece> pieces;
  for (plan::piece const& piece : operation->set->layout->manifest.pieces_of(job.bucket)) {
    slot_piece one;
    one.tensor = piece.tensor;
    one.tensor_offset = piece.tensor_offset;
    one.bytes = piece.bytes;
    one.data = at.slot + piece.bucket_offset;
    pieces.push_back(one);
  }
  auto fill = operation->set->writer->fill(pieces);
  operation->asked_source = clock::now();
  operation->stages.begins(update_stage::source, job.bucket);
  ready_after const written = co_await within<ready_after>(self->strand_, self->options_.source_limit(),
                                                           std::move(fill), "fill a bucket");
  operation->stages.add(update_stage::source, *std::exchange(operation->asked_source, std::nullopt),
                        clock::now(), job.bucket);
  at.stream->start_after(written);
  self->ops_.clear();
  // Also when the update was given up meanwhile: what was queued on the slot is waited for.
  self->queue_pack(operation, job, at, {});
}

void sender_core::packer_ended(std::shared_ptr<send_operation> const& operation, std::exception_ptr error) {
  operation->packer_runs = false;
  if (current_ != operation) return;
  if (operation->asked_source)
    operation->stages.add(update_stage::source, *operation->asked_source, clock::now());
  if (error && !operation->stopping) {
    auto const what = session::as_transfer_error(error, errc::source_failed);
    if (!operation->because) {
      operation->because =
          what.code().category() == ropeway_category() ? what.code() : make_error_code(errc::source_failed);
      operation->error = failure(transfer_error(operation->because, what.what()).tensor(what.tensor()));
    }
    failpoint<side::sender, "give_up">();
    machine_.give_up(session::as_errc(operation->because, errc::source_failed), what.what(), clock::now());
    pump();
  }
  settle();
}

/// Tells the machine once what it asked to be drained is, and completes an operation that ended everywhere.
void sender_core::settle() {
  auto const operation = current_;
  if (!operation) return;
  if (drain_asked_ && !operation->packer_runs && copies_in_flight_ == 0) {
    drain_asked_ = false;
    failpoint<side::sender, "drained">();
    machine_.drained(clock::now());
    pump();
  }
  if (operation->finished && !operation->packer_runs && current_ == operation) complete(operation);
}

void sender_core::complete(std::shared_ptr<send_operation> const& operation) {
  if (operation->over) return;
  operation->over = true;
  failpoint<side::sender, "report_complete">();
  operation->undigested.clear(); // they own the operation
  operation->stages.close();
  auto& report = operation->report;
  report.total = since(operation->called);
  report.stages = operation->stages.times;
  auto const committed = report.count(outcome::committed);
  if (!operation->error && !operation->hold && committed < options_.min_receivers()) {
    std::string text = std::to_string(committed) + " of " + std::to_string(report.receivers.size()) +
                       " receivers committed version " + std::to_string(operation->version) + "; at least " +
                       std::to_string(options_.min_receivers()) + " must";
    transfer_error error(errc::too_few_receivers, text);
    for (auto const& one : report.receivers)
      if (one.what != outcome::committed) {
        error.peer(one.name).peer_words(one.text);
        error = transfer_error(errc::too_few_receivers, text + " (" + one.name + ": " + one.text + ")")
                    .peer(one.name)
                    .peer_words(one.text);
        break;
      }
    operation->error = failure(error);
  }
  announced();
  lookout_->rest();
  current_.reset();
  observer_.tell([&](observer& who) {
    who.update_sent(report);
    who.update_ended(operation->version, !operation->error && (!operation->hold || committed != 0));
  });
  if (operation->hold) let_go_of(*operation);
  for (auto& waiting : std::exchange(operation->on_source_free, {})) {
    auto const error = operation->source_is_free ? failure() : operation->error;
    waiting->complete(error, {});
  }
  if (operation->on_done) {
    operation->on_done->complete(operation->error, report);
    operation->on_done.reset();
  }
  if (closing_) return end_close();
  if (auto const next = std::exchange(waiting_, nullptr)) {
    refuse_release(send_runs());
    return begin_now(next);
  }
  if (!hold_) return ask_for_release();
  refuse_release(version_is_held());
  // Who asked for what is held while this update was on its way out was not heard.
  post_delivery();
}

// ---- connections ----

awaitable<void> sender_core::accept_peers(std::shared_ptr<sender_core> self) {
  loop_anchor<sender_core> anchor(self->weak_from_this());
  wire::timer pause(self->strand_);
  for (bool open = true; open;) {
    std::optional<wire::connection> connection;
    bool short_of_something = false;
    try {
      connection = co_await self->listener_.accept();
    } catch (std::bad_alloc const&) {
      short_of_something = true; // which passes; a sender that hears nobody any more would not
    } catch (std::exception const&) { open = false; } // the listener was closed
    if (short_of_something && !self->closed_) {
      pause.expires_after(milliseconds(50));
      co_await pause.async_wait(compat::as_result);
    }
    if (!connection || self->closed_) continue;
    try {
      self->welcome(std::move(*connection));
    } catch (std::exception const&) {
      // No memory for one more: its connection is closed, and the next may fit.
    }
    // Those who connect without end must not keep the loop from everything else.
    co_await asio::post(self->strand_, use_awaitable);
  }
  anchor.lift();
}

void sender_core::welcome(wire::connection connection) {
  protocol::peer_id const id = next_peer_++;
  auto const link = std::make_shared<session::link>(strand_, std::move(connection));
  auto heard = [weak = weak_from_this(), id](protocol::message& what, unique_fd) {
    auto const self = weak.lock();
    if (!self || !self->peers_.contains(id)) return;
    self->heed_left_alone();
    session::failpoint_heard<side::sender>(what);
    self->look_out(what);
    self->machine_.received(id, what, clock::now());
    self->pump();
    self->settle();
  };
  auto ended = [weak = weak_from_this(), id](errc code, std::string words) {
    if (auto const self = weak.lock()) self->peer_ended(id, code, words);
  };
  peer entry;
  entry.link = link;
  entry.name = to_string(link->peer());
  std::string const words = entry.name;
  peers_.emplace(id, std::move(entry));
  try {
    {
      std::scoped_lock lock(shared_mutex_);
      std::erase_if(connections_, [](auto const& one) { return one.expired(); });
      connections_.push_back(link);
      if (abandoned_) link->cut();
    }
    link->listen(std::move(heard), std::move(ended), {});
    failpoint<side::sender, "connected">();
    machine_.connected(id, words, clock::now());
  } catch (...) {
    link->close();
    peers_.erase(id);
    throw;
  }
  pump();
}

void sender_core::peer_ended(protocol::peer_id id, errc code, std::string const& words) {
  if (!peers_.contains(id)) return; // dropped by the machine
  {
    std::scoped_lock lock(shared_mutex_);
    if (abandoned_) return; // we have cut it ourselves, and all of it ends soon
  }
  auto const leaving = peers_.extract(id);
  leaving.mapped().link->close();
  if (leaving.mapped().announced)
    observer_.tell([&](observer& who) {
      auto const& why = leaving.mapped().cut_because;
      who.receiver_left(leaving.mapped().name, why.empty() ? words : why);
    });
  failpoint<side::sender, "gone">();
  machine_.gone(id, code, words, clock::now());
  pump();
  settle();
}

// ---- carrying out what the machine decided ----

/// Makes the sealed memory that carries a layout's manifest, or a placement; gives the update up if there is
/// no memory for it.
template <class Carried, class Content>
bool sender_core::carry(Carried& one, Content const& content) {
  if (one.carrier.memory) return true;
  try {
    auto const bytes = content.encode();
    one.carrier = memory_->get(device::host())->make_region(bytes.size());
    one.carrier_bytes = bytes.size();
    std::memcpy(one.carrier.memory->data(), bytes.data(), bytes.size());
    return true;
  } catch (...) {
    give_up_later(session::as_transfer_error(std::current_exception(), errc::out_of_memory));
    return false;
  }
}

void sender_core::pump() {
  if (pumping_) return;
  {
    running_guard const guard(pumping_);
    for (machine_.take(actions_); !actions_.empty(); machine_.take(actions_))
      for (auto& action : actions_) {
        try {
          std::visit(
              [this](auto& one) {
                session::between_failpoints<side::sender>(one, [this](auto& it) { this->act(it); });
              },
              action);
        } catch (...) { failed_to_act(std::current_exception()); }
      }
  }
  arm_deadline();
  if (!waiters_.empty()) wake_waiters();
  if (!release_waiters_.empty()) wake_released();
  if (observer_) tell_observer_of_peers();
}

/// Memory or threads ran out in the middle of it: the update can't go on.
void sender_core::failed_to_act(std::exception_ptr error) {
  if (current_) give_up_later(session::as_transfer_error(error, errc::device_failed));
}

void sender_core::arm_deadline() {
  auto const next = machine_.deadline();
  // An earlier wake-up than needed is harmless, a later one is not.
  if (!next || closed_ || (armed_ && *armed_ <= *next)) return;
  armed_ = next;
  deadline_.expires_at(*next);
  deadline_.async_wait([weak = weak_from_this()](std::error_code error) {
    auto const self = weak.lock();
    if (!self || error) return;
    self->armed_.reset();
    failpoint<side::sender, "tick">();
    self->machine_.tick(clock::now());
    self->pump();
    self->settle();
  });
}

void sender_core::wake_waiters() {
  auto const here = machine_.greeted();
  auto const ready =
      std::partition(waiters_.begin(), waiters_.end(), [&](auto& w) { return w.count > here; });
  std::vector<count_waiter> woken;
  std::move(ready, waiters_.end(), std::back_inserter(woken));
  waiters_.erase(ready, waiters_.end());
  for (auto& waiter : woken) waiter.done->complete({}, here);
}

void sender_core::tell_observer_of_peers() {
  for (auto const& state : machine_.peers()) {
    auto const found = peers_.find(state.peer);
    if (found == peers_.end() || found->second.announced) continue;
    found->second.announced = true;
    found->second.name = state.name;
    observer_.tell([&](observer& who) { who.receiver_joined(state.name); });
  }
}

std::byte* sender_core::slot(std::uint32_t ring, std::uint32_t number) const {
  return rings_.at(ring).shared.memory->data() + number * slot_bytes();
}

void sender_core::act(send_action::say& action) {
  auto const found = peers_.find(action.to);
  if (found == peers_.end()) return;
  auto& link = *found->second.link;
  if (std::holds_alternative<protocol::begin>(action.what)) announced();
  if (std::holds_alternative<published>(action.what) || std::holds_alternative<read_mapped>(action.what) ||
      std::holds_alternative<protocol::commit>(action.what))
    bytes_move();
  if (auto* const offer = std::get_if<ring>(&action.what)) {
    auto const& memory = rings_.at(offer->id);
    offer->on_device = offer->id == host_ring ? 0 : 1;
    offer->origin = memory.backend->uuid();
    offer->slot_bytes = slot_bytes();
    offer->slots = options_.slots();
    return link.say(action.what, memory.shared.handle.get(), memory.shared.memory);
  }
  if (auto* const follows = std::get_if<manifest_follows>(&action.what)) {
    auto const layout = current_ ? current_->set->layout : nullptr;
    if (!layout || !carry(*layout, layout->manifest)) return;
    follows->bytes = layout->carrier_bytes;
    return link.say(action.what, layout->carrier.handle.get(), layout);
  }
  if (auto* const table = std::get_if<protocol::digest_table>(&action.what)) {
    table->bytes = digests_.table_bytes();
    return link.say(action.what, digests_.table().handle.get(), digests_.table().memory);
  }
  if (auto* const follows = std::get_if<placement_follows>(&action.what)) {
    auto const placement = current_ ? current_->placement : nullptr;
    if (!placement || !carry(*placement, placement->what)) return;
    follows->bytes = placement->carrier_bytes;
    return link.say(action.what, placement->carrier.handle.get(), placement);
  }
  link.say(action.what);
  look_out(action.what);
}

/// Bytes move from now on, or could: the update was announced, and what is packed can be handed over.
void sender_core::bytes_move() {
  if (!current_ || std::exchange(current_->moves, true)) return;
  auto const now = clock::now();
  current_->stages.add(update_stage::announce, current_->called, now);
  if (current_->first_packed) current_->stages.add(update_stage::publish, *current_->first_packed, now);
}

/// The update is over, also one that was given up: what was going on until now counts.
void sender_core::end_stages(send_operation& operation) {
  auto const now = clock::now();
  bytes_move();
  if (!operation.packing.runs() && operation.packing.ended() != clock::time_point() && !operation.placement &&
      operation.buckets_packed < operation.report.buckets)
    operation.stages.add(update_stage::wait, operation.packing.ended(), now);
}

/// Of one receiver, as far as it came.
stage_times sender_core::stages_of(peer_result const& result, send_operation const& operation) {
  stage_times times;
  auto at = operation.called;
  auto const up_to = [&](update_stage what, std::optional<time_point> until) {
    auto const end = until.value_or(result.decided);
    if (end > at) {
      times[what] = end - at;
      operation.stages.tell(what, at, end, {}, what == update_stage::load ? result.copied : 0, result.name);
    }
    at = std::max(at, end);
  };
  up_to(update_stage::announce, result.took_part);
  up_to(update_stage::load, result.all_copied);
  up_to(update_stage::wait, result.told_to_commit);
  up_to(update_stage::commit, result.decided);
  return times;
}

void sender_core::look_out(message const& what) {
  if (!current_ || !current_->set->where.is_cuda() || current_->report.bytes < session::worth_looking_out)
    return;
  if (std::holds_alternative<protocol::begin>(what)) {
    lookout_->keep(session::answer_time);
  } else if (auto const* const decided = std::get_if<protocol::accept>(&what);
             std::holds_alternative<read_mapped>(what) || (decided && decided->mapped != 0)) {
    // Who was told to read before it accepts begins when it does.
    if (!decided && reading_since_ < current_->called) return;
    reading_since_ = clock::now();
    auto const placement = current_->placement ? current_->placement->id : 0;
    if (std::exchange(read_placement_, placement) != placement) reading_took_ = {};
    if (reading_took_ < session::answer_time)
      lookout_->keep(session::answer_time);
    else
      lookout_->keep_from(reading_took_ - session::answer_time / 2, 2 * session::answer_time);
  } else if (std::holds_alternative<protocol::commit>(what) || std::holds_alternative<all_copied>(what)) {
    if (current_->placement) reading_took_ = clock::now() - reading_since_;
    lookout_->keep(session::answer_time);
  }
}

/// The running update is known to a receiver, or over without one.
void sender_core::announced() {
  if (!current_->on_started) return;
  auto const started = std::exchange(current_->on_started, nullptr);
  auto const& error = current_->error;
  started->complete(error, error ? sending() : sending(current_));
}

/// For failures in the middle of carrying out actions: the machine must not be called from there.
void sender_core::give_up_later(transfer_error what) {
  asio::post(strand_, [self = shared_from_this(), operation = current_, what = std::move(what)] {
    if (self->current_ != operation) return;
    if (!operation->because) {
      operation->because = what.code();
      operation->error = failure(what);
    }
    self->give_up(what.code(), session::as_errc(what.code(), errc::device_failed), what.what());
    self->settle();
  });
}

void sender_core::act(send_action::make_ring& action) {
  // With the device of the update that needs it: a host ring that a GPU relays to is registered with it.
  auto const relayed_from = current_ && ring_of(current_->set->where) != action.ring ? current_->set->where
                                                                                     : device_of(action.ring);
  struct made {
    std::shared_ptr<memory::backend> backend;
    memory::backend::shared_region shared;
    std::shared_ptr<void> registration;
  };
  auto make = [memory = memory_, ring = action.ring, relayed_from, bytes = slot_bytes() * options_.slots()] {
    made result;
    result.backend = memory->get(device_of(ring));
    result.shared = result.backend->make_region(bytes);
    if (relayed_from.is_cuda() && ring == host_ring)
      result.registration = memory->get(relayed_from)->register_host(result.shared.memory);
    return result;
  };
  auto then = [weak = weak_from_this(), ring = action.ring](std::exception_ptr error, made result) {
    auto const self = weak.lock();
    if (!self || self->closed_) return;
    if (!error) {
      try {
        ring_memory entry;
        entry.backend = result.backend;
        entry.shared = std::move(result.shared);
        entry.registrations.push_back(std::move(result.registration));
        entry.pack = self->make_stream(*entry.backend, device_of(ring), false);
        std::scoped_lock lock(self->shared_mutex_);
        if (self->abandoned_) return;
        self->all_streams_.push_back(entry.pack);
        self->rings_.insert_or_assign(ring, std::move(entry));
      } catch (...) { error = std::current_exception(); }
    }
    if (error) {
      auto const what = session::as_transfer_error(error, errc::out_of_memory);
      if (self->current_ && !self->current_->because && ring == ring_of(self->current_->set->where)) {
        self->current_->because = what.code();
        self->current_->error = failure(what);
      }
      failpoint<side::sender, "ring_failed">();
      self->machine_.ring_failed(ring, session::as_errc(what.code(), errc::out_of_memory),
                                 session::words_of(what), clock::now());
    } else {
      failpoint<side::sender, "ring_ready">();
      self->machine_.ring_ready(ring, clock::now());
    }
    self->pump();
    self->settle();
  };
  try {
    offload_.run(strand_, std::move(make), then);
  } catch (...) { // no thread to be had; the machine is told later, as if the thread had
    asio::post(strand_, [then, error = std::current_exception()]() mutable { then(error, made()); });
  }
}

void sender_core::act(send_action::pack& action) {
  if (!current_ || current_->stopping) return;
  if (current_->set->on_the_fly()) {
    packs_.push_back(action);
    return packs_changed_.notify();
  }
  try {
    pack_views(action);
  } catch (...) { give_up_later(session::as_transfer_error(std::current_exception(), errc::device_failed)); }
}

void sender_core::act(send_action::relay& action) {
  auto const operation = current_;
  if (!operation) return;
  auto const ring = ring_of(operation->set->where);
  auto& from = rings_.at(ring);
  try {
    if (!from.relay) {
      auto relay = make_stream(*from.backend, device_of(ring), true);
      std::scoped_lock lock(shared_mutex_);
      if (abandoned_) return;
      all_streams_.push_back(relay);
      from.relay = std::move(relay);
    }
    memory::copy_op op;
    op.from = slot(ring, action.from);
    op.from_where = device_of(ring);
    op.to = slot(host_ring, action.to);
    op.bytes = action.bytes;
    from.relay->copy({&op, 1});
    session::copied what;
    what.whose = operation;
    what.shown = {side::sender, update_stage::relay};
    what.from = from.shared.memory;
    what.to = rings_.at(host_ring).shared.memory;
    what.seq = action.seq;
    what.bucket = action.bucket;
    what.bytes = action.bytes;
    from.relay->then(std::move(what));
    ++copies_in_flight_;
    bytes_move();
  } catch (std::exception const&) {
    give_up_later(session::as_transfer_error(std::current_exception(), errc::device_failed));
  }
}

void sender_core::act(send_action::await_source&) {
  auto const operation = current_;
  if (!operation) return;
  session::copied what;
  what.whose = operation;
  what.what = session::copied::kind::source;
  wait_at_gate(*operation, std::move(what));
}

/// Reports `what` when the caller's stream or event has come so far.
void sender_core::wait_at_gate(send_operation& operation, session::copied what) {
  try {
    // What the caller named may be gone; the delivery is about to be given up.
    if (operation.hold && operation.hold->left_alone()) return;
    if (is_ready(operation)) {
      // Having the GPU tell us so would take until it turns to this process.
      auto past = [weak = weak_from_this(), what = std::move(what)]() mutable {
        if (auto const self = weak.lock()) self->copied(false, what, {});
      };
      ++copies_in_flight_;
      return asio::post(strand_, std::move(past));
    }
    device const where = operation.when.where();
    auto gate = gates_.find(where.ordinal());
    if (gate == gates_.end()) {
      auto made = make_stream(*memory_->get(where), where, false);
      std::scoped_lock lock(shared_mutex_);
      if (abandoned_) return;
      all_streams_.push_back(made);
      gate = gates_.emplace(where.ordinal(), std::move(made)).first;
    }
    if (!operation.read([&] { gate->second->start_after(operation.when); })) return;
    gate->second->then(std::move(what));
    ++copies_in_flight_;
  } catch (...) { give_up_later(session::as_transfer_error(std::current_exception(), errc::device_failed)); }
}

void sender_core::act(send_action::send_parts& action) {
  // Exporting takes a millisecond each for some kinds of memory.
  auto make = [sources = exports_.parts(action.segment, action.first, action.count)] {
    std::vector<memory::part_handle> made;
    for (auto const& source : sources) made.push_back(source.make());
    return made;
  };
  auto then = [weak = weak_from_this(), order = action](std::exception_ptr error,
                                                        std::vector<memory::part_handle> made) {
    auto const self = weak.lock();
    if (!self || self->closed_) return;
    segment_part part;
    part.update = order.update;
    part.segment = order.segment;
    part.part = order.first;
    for (auto& one : made) {
      part.kind = static_cast<std::uint8_t>(one.kind);
      part.bytes = one.bytes;
      part.legacy = one.legacy;
      self->say_part(order.to, part, std::make_shared<unique_fd const>(std::move(one.fd)));
      ++part.part;
    }
    if (!error && made.size() == order.count) return;
    auto const what = error ? session::as_transfer_error(error, errc::not_reachable)
                            : transfer_error(errc::not_reachable, "the segment is gone");
    part.kind = 0;
    part.bytes = 0;
    part.code = static_cast<std::uint16_t>(session::as_errc(what.code(), errc::not_reachable));
    part.text = one_line(session::words_of(what));
    self->say_part(order.to, part, nullptr);
  };
  offload_.run(strand_, std::move(make), std::move(then));
}

void sender_core::say_part(protocol::peer_id to, segment_part what, std::shared_ptr<unique_fd const> fd) {
  auto const found = peers_.find(to);
  if (found == peers_.end() || !machine_.wants_parts(to, what.update)) return;
  send_action::say said{to, std::move(what)};
  auto& link = *found->second.link;
  session::between_failpoints<side::sender>(said, [&](auto& it) {
    if (fd && *fd)
      link.say(it.what, fd->get(), fd);
    else
      link.say(it.what);
  });
}

void sender_core::act(send_action::cut& action) {
  auto const found = peers_.find(action.peer);
  if (found == peers_.end()) return;
  found->second.link->cut(); // and its end is heard behind all that was said before
  found->second.cut_because = std::move(action.text);
}

void sender_core::act(send_action::drop& action) {
  auto const found = peers_.find(action.peer);
  if (found == peers_.end()) return;
  if (found->second.announced)
    observer_.tell([&](observer& who) { who.receiver_left(found->second.name, action.text); });
  found->second.link->close();
  peers_.erase(found);
}

void sender_core::act(send_action::source_free&) {
  auto const operation = current_;
  if (!operation || operation->because) return; // given up: that is no freedom to report
  operation->source_is_free = true;
  operation->report.source_free = since(operation->called);
  if (operation->hold) let_go_of(*operation);
  for (auto& waiting : std::exchange(operation->on_source_free, {})) waiting->complete({}, {});
}

void sender_core::act(send_action::drain&) {
  if (!current_) return;
  packs_.clear();
  drain_asked_ = true;
  stop_packer();
  // Not from here: the machine is in the middle of its actions.
  asio::post(strand_, [self = shared_from_this()] { self->settle(); });
}

void sender_core::act(send_action::finished& action) {
  auto const operation = current_;
  if (!operation) return;
  operation->finished = true;
  operation->stopping = true;
  packs_changed_.notify();
  if (action.code != errc::ok && !operation->error) operation->error = failure(action.code, action.text);
  end_stages(*operation);
  for (auto const& result : action.results) {
    receiver_report one;
    one.name = result.name;
    one.what = result.what;
    if (result.what != outcome::committed) one.error = make_error_code(static_cast<errc>(result.code));
    one.text = result.text;
    one.way = result.mapped ? route::mapped : result.ring == host_ring ? route::host : route::staged;
    one.route_reason = result.route_reason;
    one.copied = result.copied;
    one.after = result.decided - operation->called;
    one.stages = stages_of(result, *operation);
    operation->report.receivers.push_back(std::move(one));
  }
  asio::post(strand_, [self = shared_from_this()] { self->settle(); });
}

} // namespace ropeway::detail
