#include "session/receiver_core.hpp"

#include <algorithm>
#include <asio/post.hpp>

#include "session/failpoint.hpp"
#include "session/initiating.hpp"

namespace ropeway::detail {
namespace {

using namespace protocol;
using session::failpoint;
using session::side;
constexpr std::size_t manifests_kept = 4, placements_kept = 4;
/// A paced update is copied in steps, one after so long: each takes all of the device, so they are short
/// beside what else runs there.
constexpr std::chrono::microseconds pace_step(250);

receiver_options checked(receiver_options options) {
  auto const refuse = [](char const* what) { throw transfer_error(errc::invalid_argument, what); };
  if (options.name().empty() || options.name().size() > max_name)
    refuse("the receiver's name must have 1 to 255 bytes");
  if (options.group().size() > max_name) refuse("the group's name must have at most 255 bytes");
  if (options.group().empty() != (options.group_size() == 0)) refuse("a group needs both a name and a size");
  for (auto const limit : {options.connect_limit(), options.handshake_limit(), options.silence_limit(),
                           options.close_limit(), options.idle_mapping_limit()})
    if (limit.count() <= 0) refuse("every limit must be positive");
  if (options.lease_limit().count() < 0) refuse("the lease limit must not be negative");
  options.lease_limit(countable(options.lease_limit()));
  options.idle_mapping_limit(countable(options.idle_mapping_limit()));
  if (options.max_manifest_bytes() == 0) refuse("max_manifest_bytes must be positive");
  options.connect_limit(countable(options.connect_limit())).silence_limit(countable(options.silence_limit()));
  options.handshake_limit(countable(options.handshake_limit())).close_limit(countable(options.close_limit()));
  return options;
}

/// Reads a manifest from a sealed region into private memory and checks it against its announcement.
std::shared_ptr<plan::manifest const> read_from(memory::backend& host, unique_fd fd, std::uint64_t bytes,
                                                begin const& announced) {
  auto const region = host.import_region(std::move(fd), bytes, {});
  std::vector<std::byte> const copy(region->data(), region->data() + bytes);
  auto manifest = std::make_shared<plan::manifest>(plan::manifest::decode(copy));
  auto const refuse = [](std::string const& what) {
    throw transfer_error(errc::protocol_error, "the manifest " + what + " that was announced");
  };
  if (manifest->layout() != announced.layout) refuse("has not the layout");
  if (manifest->tensors().size() != announced.tensors) refuse("has not the number of tensors");
  if (manifest->buckets().size() != announced.buckets) refuse("has not the number of buckets");
  if (manifest->total_bytes() != announced.total_bytes) refuse("has not the number of bytes");
  return manifest;
}

/// The same of a placement.
std::shared_ptr<plan::placement const> read_placement_from(memory::backend& host, unique_fd fd,
                                                           std::uint64_t bytes, plan::manifest const& of) {
  auto const region = host.import_region(std::move(fd), bytes, {});
  std::vector<std::byte> const copy(region->data(), region->data() + bytes);
  return std::make_shared<plan::placement const>(plan::placement::decode(copy, of));
}

} // namespace

void held_bucket::release(ready_after when) {
  if (released_.exchange(true) || !load) return;
  shown.end();
  if (auto const core = load->core) core->post_released(*this, when);
}

receiver_core::receiver_core(asio::any_io_executor executor, receiver_options options,
                             std::shared_ptr<memory::backends> memory)
    : executor_(executor)
    , options_(checked(std::move(options)))
    , observer_(options_.watched_by())
    , memory_(std::move(memory))
    , strand_(wire::make_strand(executor))
    , lookout_(std::make_shared<session::lookout>(strand_))
    , close_limit_(strand_)
    , deadline_(strand_)
    , pace_(strand_)
    , idle_(strand_)
    , lease_limit_(strand_) {}

receiver_core::~receiver_core() {
  // What waits in the loop for a message holds its link.
  if (link_) link_->close();
}

std::optional<std::uint64_t> receiver_core::version() const noexcept {
  std::scoped_lock lock(shared_mutex_);
  return status_.version;
}

receiver_status receiver_core::status() const {
  std::scoped_lock lock(shared_mutex_);
  return status_;
}

void receiver_core::ended(failure const& why) {
  enter(session_phase::closed);
  std::scoped_lock lock(shared_mutex_);
  status_.error = why.text();
}

void receiver_core::enter(session_phase phase) {
  std::scoped_lock lock(shared_mutex_);
  if (phase != status_.phase) status_.since = std::chrono::system_clock::now();
  status_.phase = phase;
  if (phase != session_phase::closed) status_.error.clear();
  status_.arriving.reset();
  if (load_ && phase != session_phase::idle) status_.arriving = load_->what.version;
}

// ---- initiating calls, any thread ----

void receiver_core::post_connect(std::string path, std::unique_ptr<completion<nothing>> done,
                                 std::shared_ptr<stop_request> stop) {
  asio::post(
      strand_, [self = shared_from_this(), path = std::move(path), shared = share(std::move(done)), stop] {
        if (self->closing_)
          return (*shared)->complete(failure(errc::not_open, "the receiver is being closed"), {});
        if (self->attempt_ || self->machine_)
          return (*shared)->complete(failure(errc::busy, "there is a session already; close it first"), {});
        if (stop->requested()) return (*shared)->complete(failure(aborted_by_caller()), {});
        auto const which = std::make_shared<connect_attempt>();
        self->attempt_ = which;
        self->on_connected_ = std::move(*shared);
        self->graceful_end_ = false;
        self->path_ = path;
        self->enter(session_phase::connecting);
        stop->attach([weak = self->weak_from_this(), which] {
          auto const alive = weak.lock();
          if (!alive) return;
          asio::post(alive->strand_, [alive, which] {
            if (alive->attempt_ == which)
              alive->connect_failed(failure(aborted_by_caller(), "the connect was cancelled"));
          });
        });
        // Finding the devices can take long the first time.
        struct found {
          std::shared_ptr<memory::backend> backend;
          std::vector<memory::device_uuid> devices;
        };
        auto look = [memory = self->memory_, where = self->options_.where()] {
          found result;
          result.backend = memory->get(where);
          if (where.is_cuda()) {
            result.devices = memory->cuda_devices();
            auto const ours = std::find(result.devices.begin(), result.devices.end(), result.backend->uuid());
            if (ours != result.devices.end()) std::rotate(result.devices.begin(), ours, ours + 1);
          }
          return result;
        };
        auto then = [weak = self->weak_from_this(), which, path](std::exception_ptr error, found result) {
          auto const alive = weak.lock();
          if (!alive || alive->attempt_ != which) return;
          try {
            if (error) std::rethrow_exception(error);
            alive->devices_ = std::move(result.devices);
            if (alive->options_.use_route() == route_choice::host) alive->devices_.clear();
            alive->backend_ = result.backend;
            alive->need_stream(*result.backend);
          } catch (...) {
            return alive->connect_failed(
                failure(session::as_transfer_error(std::current_exception(), errc::no_device)));
          }
          auto connected = [alive, which](failure why, std::optional<wire::connection> made) {
            if (alive->attempt_ != which) return; // cancelled meanwhile
            if (why) return alive->connect_failed(std::move(why));
            alive->connected(std::move(*made));
          };
          start_finding(alive, which, alive->strand_, path, alive->options_.connect_limit(),
                        trust_of(alive->options_), std::move(connected));
        };
        try {
          self->offload_.run(self->strand_, std::move(look), std::move(then));
        } catch (...) {
          self->connect_failed(
              failure(session::as_transfer_error(std::current_exception(), errc::out_of_memory)));
        }
      });
}

/// Cancelling one of a load's operations aborts the update, if that operation still waits then.
void receiver_core::give_up_on_stop(std::shared_ptr<load_operation> const& load, stop_request& stop,
                                    bool (*still_waits)(load_operation const&)) {
  stop.attach([weak = weak_from_this(), load, still_waits] {
    auto const alive = weak.lock();
    if (!alive) return;
    asio::post(alive->strand_, [alive, load, still_waits] {
      if (still_waits(*load))
        alive->give_up(load, aborted_by_caller(), errc::peer_aborted, "the receiver cancelled the update");
    });
  });
}

void receiver_core::post_next(std::unique_ptr<completion<std::optional<update>>> done,
                              std::shared_ptr<stop_request> stop) {
  asio::post(strand_, [self = shared_from_this(), shared = share(std::move(done)), stop] {
    if (self->on_update_)
      return (*shared)->complete(failure(errc::busy, "next_update is awaited already"), {});
    if (self->unclaimed_) {
      auto given = std::move(self->unclaimed_);
      self->unclaimed_.reset();
      return (*shared)->complete({}, std::move(given));
    }
    if (!self->machine_) {
      if (self->graceful_end_) return (*shared)->complete({}, {});
      return (*shared)->complete(self->session_end_, {});
    }
    if (stop->requested()) return (*shared)->complete(failure(aborted_by_caller()), {});
    self->on_update_ = std::move(*shared);
    auto const key = self->on_update_.get();
    stop->attach([weak = self->weak_from_this(), key] {
      auto const alive = weak.lock();
      if (!alive) return;
      asio::post(alive->strand_, [alive, key] {
        if (alive->on_update_.get() != key) return;
        std::exchange(alive->on_update_, nullptr)->complete(failure(aborted_by_caller()), {});
      });
    });
  });
}

void receiver_core::post_close(std::unique_ptr<completion<nothing>> done) {
  asio::post(strand_, [self = shared_from_this(), shared = share(std::move(done))] {
    self->on_closed_.push_back(std::move(*shared));
    if (self->attempt_) self->connect_failed(failure(aborted_by_caller(), "the receiver was closed"));
    if (!self->machine_) return self->end_close();
    if (!std::exchange(self->closing_, true)) {
      // Views that the embedder holds would keep an aborted update from ending.
      self->close_limit_.expires_after(self->options_.close_limit());
      self->close_limit_.async_wait([weak = self->weak_from_this()](std::error_code error) {
        auto const alive = weak.lock();
        if (alive && !error && alive->closing_)
          alive->end_session(failure(aborted_by_caller(), "the receiver was closed"), false);
      });
    }
    if (self->load_ && self->load_->committing) return; // goodbye comes after the commit
    if (self->load_ && !self->load_->error)
      self->load_->error = failure(aborted_by_caller(), "the receiver was closed");
    self->say_goodbye();
  });
}

void receiver_core::say_goodbye() {
  failpoint<side::receiver, "close">();
  machine_->close("the receiver closed", clock::now());
  pump();
}

void receiver_core::post_load(std::shared_ptr<load_operation> load, load_target into, ready_after when,
                              std::unique_ptr<completion<load_report>> done,
                              std::shared_ptr<stop_request> stop) {
  asio::post(strand_, [self = shared_from_this(), load, into, when, shared = share(std::move(done)), stop] {
    if (auto const error = self->not_usable(*load)) return (*shared)->complete(error, {});
    if (load->how != load_operation::way::undecided)
      return (*shared)->complete(failure(errc::busy, "this update is being loaded already"), {});
    auto set = into.set;
    if (into.shadow)
      set = into.shadow->start_load();
    else if (!set->start_load())
      set.reset();
    if (!set)
      return (*shared)->complete(
          failure(errc::busy, "another update is being loaded into these destinations"), {});
    load->how = load_operation::way::into;
    load->into = set;
    load->shadow = into.shadow;
    load->when = when;
    load->on_loaded = std::move(*shared);
    if (stop->requested())
      return self->give_up(load, aborted_by_caller(), errc::peer_aborted,
                           "the receiver cancelled the update");
    try {
      if (self->stream_->failed()) self->need_stream(*self->memory_->get(self->options_.where()));
      load->part = &set->plan_for(*load->manifest);
      if (!load->part->scatter.check().none())
        throw transfer_error(errc::destination_mismatch, to_string(load->part->scatter.check()));
    } catch (...) {
      return self->turn_down(load, session::as_transfer_error(std::current_exception(), errc::out_of_memory));
    }
    self->give_up_on_stop(load, *stop, [](load_operation const&) { return true; });
    if (!self->free_of_leases(load, false)) return;
    self->accept_into(load);
  });
}

/// Refuses an update that can't be loaded.
void receiver_core::turn_down(std::shared_ptr<load_operation> const& load, transfer_error const& why) {
  end_load(load, failure(why));
  if (!machine_ || load->session != session_) return;
  failpoint<side::receiver, "refuse_update">();
  machine_->refuse_update(session::as_errc(why.code(), errc::out_of_memory), why.what(), clock::now());
  pump();
}

// ---- readers that hold what a load must write ----

bool receiver_core::free_of_leases(std::shared_ptr<load_operation> const& load, bool at_commit) {
  if (!load->shadow) return true;
  auto ended = [weak = weak_from_this(), waiting = std::weak_ptr<load_operation>(load), at_commit] {
    auto const self = weak.lock();
    if (!self) return;
    asio::post(self->strand_, [self, waiting, at_commit] {
      if (auto const alive = waiting.lock()) self->leases_ended(alive, at_commit);
    });
  };
  bool const free = at_commit ? load->shadow->free_to_commit(std::move(ended))
                              : load->shadow->free_to_load(std::move(ended));
  if (free) return true;
  load->waits_for_leases = true;
  lease_limit_.expires_after(options_.lease_limit());
  lease_limit_.async_wait([weak = weak_from_this(), load, at_commit](std::error_code error) {
    auto const self = weak.lock();
    if (!self || error || !load->waits_for_leases) return;
    failure const why(errc::leased, "readers have held the weights that would be written for " +
                                        std::to_string(self->options_.lease_limit().count()) + " ms");
    if (at_commit)
      self->fail_commit(load, why);
    else
      self->put_off(load, why);
  });
  return false;
}

void receiver_core::leases_ended(std::shared_ptr<load_operation> const& load, bool at_commit) {
  if (!std::exchange(load->waits_for_leases, false) || load->over) return;
  lease_limit_.cancel();
  if (at_commit) return copy_over(load);
  accept_into(load);
}

void receiver_core::put_off(std::shared_ptr<load_operation> const& load, failure why) {
  end_load(load, why);
  if (!machine_ || load->session != session_) return;
  failpoint<side::receiver, "not_now_update">();
  machine_->not_now_update(options_.lease_limit(), why.text(), clock::now());
  pump();
}

void receiver_core::post_bucket(std::shared_ptr<load_operation> load,
                                std::unique_ptr<completion<std::optional<bucket>>> done,
                                std::shared_ptr<stop_request> stop) {
  asio::post(strand_, [self = shared_from_this(), load, shared = share(std::move(done)), stop] {
    if (auto const error = self->not_usable(*load)) return (*shared)->complete(error, {});
    if (load->how == load_operation::way::into || load->on_bucket || load->on_loaded)
      return (*shared)->complete(failure(errc::busy, "this update is being loaded already"), {});
    load->on_bucket = std::move(*shared);
    load->asked_at = clock::now();
    if (!load->accepted && self->options_.use_route() == route_choice::mapped)
      return self->turn_down(load,
                             transfer_error(errc::not_reachable,
                                            "this receiver allows the mapped route only, which gives no "
                                            "buckets: load into destinations"));
    self->give_up_on_stop(load, *stop, [](load_operation const& one) { return one.on_bucket != nullptr; });
    if (!load->accepted) return self->accept_compared(load, load_operation::way::by_bucket);
    self->give_bucket(*load);
    self->pump();
  });
}

void receiver_core::post_commit(std::shared_ptr<load_operation> load,
                                std::unique_ptr<completion<load_report>> done,
                                std::shared_ptr<stop_request> stop) {
  asio::post(strand_, [self = shared_from_this(), load, shared = share(std::move(done)), stop] {
    if (auto const error = self->not_usable(*load)) return (*shared)->complete(error, {});
    if (load->how == load_operation::way::into || load->on_bucket || load->on_loaded)
      return (*shared)->complete(failure(errc::busy, "this update is being loaded already"), {});
    if (load->given != load->what.buckets || load->in_hands != 0)
      return (*shared)->complete(
          failure(errc::invalid_argument, "commit: " + std::to_string(load->what.buckets - load->given) +
                                              " buckets were not taken and " +
                                              std::to_string(load->in_hands) + " not released"),
          {});
    load->on_loaded = std::move(*shared);
    if (!load->accepted) // an update without buckets
      self->accept_compared(load, load_operation::way::by_bucket);
    if (load->over) return;
    self->give_up_on_stop(load, *stop, [](load_operation const& one) { return one.on_loaded != nullptr; });
    failpoint<side::receiver, "in_place">();
    self->machine_->in_place(clock::now());
    self->pump();
  });
}

void receiver_core::post_refuse(std::shared_ptr<load_operation> load, std::string why) {
  asio::post(strand_, [self = shared_from_this(), load, why = std::move(why)] {
    if (load->over || load->aborting || self->load_ != load || !self->machine_) return;
    if (load->accepted || load->how != load_operation::way::undecided)
      return self->give_up(load, make_error_code(errc::loader_failed), errc::loader_failed, why);
    load->over = true;
    load->error = failure(errc::not_open, "this update was refused");
    load->stages.close();
    self->load_.reset();
    self->enter(session_phase::idle);
    failpoint<side::receiver, "refuse_update">();
    self->machine_->refuse_update(errc::peer_refused, why, clock::now());
    self->pump();
  });
}

void receiver_core::post_not_now(std::shared_ptr<load_operation> load, milliseconds retry, std::string why) {
  asio::post(strand_, [self = shared_from_this(), load, retry, why = std::move(why)] {
    if (load->over || load->how != load_operation::way::undecided || load->aborting || self->load_ != load ||
        !self->machine_)
      return;
    load->over = true;
    load->error = failure(errc::not_open, "this update was put off");
    load->stages.close();
    self->load_.reset();
    self->enter(session_phase::idle);
    failpoint<side::receiver, "not_now_update">();
    self->machine_->not_now_update(retry, why, clock::now());
    self->pump();
  });
}

void receiver_core::post_released(held_bucket const& bucket, ready_after when) {
  session::copied what;
  what.whose = bucket.load;
  what.seq = bucket.seq;
  what.bucket = bucket.number;
  what.bytes = bucket.bytes;
  for (auto const& piece : bucket.pieces) what.moved += piece.bytes; // without what lies between them
  what.began = bucket.given_at;
  what.from = bucket.ring;
  what.slot = bucket.slot;
  what.what = session::copied::kind::view;
  bool const given = bucket.given_at != clock::time_point(); // else it came, and nobody took it
  asio::post(strand_,
             [self = shared_from_this(), load = bucket.load, what = std::move(what), given, when]() mutable {
               if (given) {
                 --load->in_hands;
                 load->bytes_copied += what.moved;
               }
               what.ended = clock::now();
               if (when.type() == ready_after::kind::nothing) return self->copied(what, {});
               try {
                 self->stream().start_after(when);
                 self->stream().then(std::move(what));
               } catch (std::exception const& error) {
                 --load->held;
                 self->give_up(load, make_error_code(errc::device_failed), errc::device_failed, error.what());
                 self->settle(load);
               }
             });
}

void receiver_core::abandon() noexcept {
  observer_.forget();
  std::shared_ptr<copy_stream> stream;
  std::shared_ptr<session::digester> digester;
  {
    std::scoped_lock lock(shared_mutex_);
    stream = stream_to_drain_;
    digester = digester_;
  }
  auto const end = clock::now() + memory::queue::drain_limit;
  bool const copied = !stream || stream->shut(end);
  bool const drained = (!digester || digester->shut(end)) && copied;
  asio::post(strand_, [self = shared_from_this(), stream, digester, drained] {
    // Copies that could not be waited for: they keep what they touch as long as the process lives.
    if (!drained) (void)new std::pair(stream, digester);
    std::error_code const code = drained ? aborted_by_caller() : make_error_code(errc::device_failed);
    failure const error(code, drained
                                  ? "the receiver was destroyed"
                                  : "the receiver was destroyed while copies were stuck on the device; the "
                                    "destinations may still be written");
    if (self->attempt_) self->connect_failed(error);
    auto const load = self->load_;
    if (load) {
      load->error = error;
      load->copies_in_flight = 0; // nobody counts them any more
    }
    // Not the end that a goodbye is: nobody has said one to us.
    if (self->on_update_) std::exchange(self->on_update_, nullptr)->complete(error, {});
    if (self->machine_) {
      failpoint<side::receiver, "close">();
      self->machine_->close("the receiver was destroyed", clock::now());
      self->pump();
    }
    self->end_session(error, false);
    if (load && !load->over) self->end_load(load, error);
    if (drained && self->stream_) self->stream_->forget();
    if (drained && digester) digester->forget();
  });
}

void receiver_core::dissolve() noexcept {
  // All of these may own the receiver, so that each can destroy us; our caller still holds us.
  auto const connected = std::move(on_connected_);
  auto const update = std::move(on_update_);
  auto const closed = std::exchange(on_closed_, {});
  auto const unclaimed = std::exchange(unclaimed_, {});
  attempt_.reset();
  auto const mapping = std::exchange(mapping_, {});
  auto const load = std::exchange(load_, nullptr);
  if (!load) return;
  load->over = true;
  let_go_of_sets(*load);
  auto const loaded = std::move(load->on_loaded);
  auto const bucket = std::move(load->on_bucket);
  auto const arrived = std::exchange(load->arrived, {});
}

// ---- connecting ----

void receiver_core::connected(wire::connection connection) {
  ++session_;
  link_ = std::make_shared<session::link>(strand_, std::move(connection));
  receiver_settings settings;
  settings.greeting.name = options_.name();
  settings.greeting.group = options_.group();
  settings.greeting.group_size = options_.group_size();
  settings.greeting.last_sender = held_sender_;
  settings.greeting.last_update = held_update_;
  settings.greeting.version_held = held_version_;
  for (auto const& device : devices_)
    if (settings.greeting.devices.size() < max_devices) settings.greeting.devices.push_back(device);
  settings.handshake = options_.handshake_limit();
  settings.silence = options_.silence_limit();
  arriving_.from = to_string(link_->peer()) + " at " + path_;
  {
    std::scoped_lock lock(shared_mutex_);
    status_.sender = arriving_.from;
  }
  settings.max_manifest_bytes = options_.max_manifest_bytes();
  settings.maps =
      options_.use_route() == route_choice::automatic || options_.use_route() == route_choice::mapped;
  machine_.emplace(std::move(settings));
  failpoint<side::receiver, "connected">();
  machine_->connected(clock::now());
  auto heard = [weak = weak_from_this(), session = session_](protocol::message& what, unique_fd fd) {
    auto const self = weak.lock();
    if (!self || self->session_ != session || !self->machine_) return;
    self->incoming_fd_ = std::move(fd);
    if (auto const* const announced = std::get_if<begin>(&what)) {
      self->announced_at_ = clock::now();
      self->announced_stages_ = session::stage_log(self->observer_, side::receiver, announced->version);
      self->announced_stages_.begins(update_stage::announce);
    } else if (std::holds_alternative<abort_update>(what)) {
      self->announced_stages_.close();
    }
    // Said between two updates, it says that one is about to begin.
    if (std::holds_alternative<alive>(what) && !self->load_ && self->options_.where().is_cuda())
      self->lookout_->keep(session::answer_time);
    session::failpoint_heard<side::receiver>(what);
    self->machine_->received(what, clock::now());
    self->pump();
    self->incoming_fd_.reset();
  };
  auto ended = [weak = weak_from_this(), session = session_](errc code, std::string words) {
    auto const self = weak.lock();
    if (!self || self->session_ != session || !self->machine_) return;
    failpoint<side::receiver, "gone">();
    self->machine_->gone(code, std::move(words), clock::now());
    self->pump();
  };
  auto lost = [weak = weak_from_this()] {
    if (auto const self = weak.lock()) self->dissolve();
  };
  link_->listen(std::move(heard), std::move(ended), std::move(lost));
  pump();
}

/// The attempt came to nothing, be it that nobody listens or that there was no welcome.
void receiver_core::connect_failed(failure error) {
  auto const which = std::exchange(attempt_, nullptr);
  if (which) which->give_up();
  session_end_ = failure(errc::not_open, "there is no session; connect first");
  drop_session();
  ended(error);
  if (on_connected_) std::exchange(on_connected_, nullptr)->complete(std::move(error), {});
}

/// Forgets the session; not while its machine is being asked.
void receiver_core::drop_session() {
  if (link_) link_->close_when_said();
  link_.reset();
  machine_.reset();
  incoming_fd_.reset();
  unread_.reset();
  drop_mapping();
  pace_.cancel();
  idle_.cancel();
  lookout_->rest();
  deadline_.cancel();
  armed_.reset();
  unclaimed_.reset();
  announced_stages_.close();
  for (auto& [number, ring] : rings_) offload_.dispose(std::move(ring)); // unmapping can take long
  rings_.clear();
  // Copies that still run hold what they read.
  for (auto& one : take_segments(all_segments())) offload_.dispose(std::move(one));
  mapped_copies_.clear();
  offload_.dispose(std::move(table_.memory));
  table_ = {};
  unmappable_ = 0;
  placements_.clear();
  to_unmap_.clear();
}

// ---- one update ----

failure receiver_core::not_usable(load_operation const& load) const {
  if (load.error) return load.error;
  if (load.over) return failure(errc::not_open, "this update is over");
  if (load.aborting) return failure(load.because ? load.because : make_error_code(errc::peer_aborted));
  return {};
}

void receiver_core::accept(load_operation& load, load_operation::way how, failure why_not_mapped) {
  load.how = how;
  load.accepted = true;
  enter(session_phase::loading);
  load.accepted_at = clock::now();
  observer_.tell(
      [&](observer& who) { who.update_began(load.what.version, load.what.total_bytes, load.what.buckets); });
  auto const decided_at = load.mapping_since.value_or(load.accepted_at);
  load.stages.add(update_stage::announce, load.announced_at, load.offered_at);
  load.stages.add(update_stage::decide, load.offered_at, decided_at);
  load.stages.add(update_stage::map, decided_at, load.accepted_at);
  load.loading.rest(load.accepted_at);
  load.stages.begins(update_stage::wait);
  failpoint<side::receiver, "accept_update">();
  receiver_machine::acceptance answer;
  answer.by_hand = how == load_operation::way::by_bucket;
  answer.mapped = load.mapped != nullptr;
  if (why_not_mapped) {
    answer.code = session::as_errc(why_not_mapped.code(), errc::not_reachable);
    answer.text = why_not_mapped.text();
  }
  machine_->accept_update(clock::now(), std::move(answer));
}

/// Answers a waiting next_bucket if that is possible now.
void receiver_core::give_bucket(load_operation& load) {
  if (!load.on_bucket) return;
  if (!load.arrived.empty()) {
    auto held = std::move(load.arrived.front());
    load.arrived.pop_front();
    ++load.given;
    held_sender_ = {}; // as in begin_writing: nobody knows where it goes
    ++load.in_hands;
    held->given_at = clock::now();
    held->shown.begin({side::receiver, update_stage::load}, held->number);
    load.stages.ends(update_stage::wait);
    // Between two buckets the embedder has its own time.
    if (load.loading.start(held->given_at))
      load.stages.add(update_stage::wait, std::max(load.loading.ended(), load.asked_at), held->arrived_at);
    std::exchange(load.on_bucket, nullptr)->complete({}, std::optional<bucket>(bucket(std::move(held))));
  } else if (load.given == load.what.buckets) {
    std::exchange(load.on_bucket, nullptr)->complete({}, {});
  } else if (load.slots && load.in_hands >= *load.slots) {
    std::exchange(load.on_bucket, nullptr)
        ->complete(failure(errc::slots_held,
                           "all " + std::to_string(*load.slots) +
                               " slots are held by buckets that were not released; release one first"),
                   {});
  }
  if (!load.on_bucket)
    load.stages.ends(update_stage::wait);
  else if (!load.loading.runs())
    load.stages.begins(update_stage::wait);
}

void receiver_core::loaded(std::shared_ptr<load_operation> const& load, std::uint64_t seq,
                           std::uint64_t bytes) {
  load->bytes_loaded += bytes;
  if (load->session != session_ || !machine_ || load->aborting || load->over) return;
  observer_.tell(
      [&](observer& who) { who.bucket_moved(load->what.version, load->what.buckets, load->bytes_loaded); });
  failpoint<side::receiver, "loaded">();
  machine_->loaded(seq, clock::now());
  pump();
  waits_for_more(*load);
}

/// A bucket was seen to be copied, or its views to be read no more.
void receiver_core::copied(session::copied& what, std::error_code error) {
  auto const load = std::static_pointer_cast<load_operation>(what.whose);
  if (what.what == session::copied::kind::commit) {
    if (load->over) return;
    --load->copies_in_flight;
    if (error) return fail_commit(load, failure(error, "the receiver's device failed: " + error.message()));
    return commit(load);
  }
  if (what.what == session::copied::kind::mapped && !error && !load->aborting && !load->over) {
    if (load->copies_in_flight != 0) --load->copies_in_flight;
    load->read_until = what.ended;
    load->overslept = what.overslept;
    return read_on(load);
  }
  if (what.what == session::copied::kind::mapped && load->session != session_)
    offload_.dispose(std::exchange(what.from, nullptr)); // perhaps the last to hold a mapping
  bool const counts = what.what == session::copied::kind::bucket ||
                      (what.what == session::copied::kind::view && what.began != clock::time_point());
  if (counts && !load->over) {
    load->stages.tell(update_stage::load, what.began, what.ended, what.bucket, what.moved);
    loading_ends(*load, what.ended);
  }
  if (counts && !error && digest_bucket(load, what)) return;
  if (what.what == session::copied::kind::view) {
    --load->held;
  } else if (load->copies_in_flight != 0) { // abandon() has drained the stream, and forgotten them
    --load->copies_in_flight;
  }
  if (error)
    give_up(load, error, errc::device_failed, "the receiver's device failed: " + error.message());
  else
    loaded(load, what.seq, what.bytes);
  settle(load);
}

void receiver_core::need_stream(memory::backend& on) {
  if (stream_ && !stream_->failed()) return;
  auto done = [weak = weak_from_this()](session::copied& what, std::error_code error) {
    if (auto const self = weak.lock()) self->copied(what, error);
  };
  stream_ = std::make_shared<copy_stream>(strand_, on.make_queue(), std::move(done),
                                          session::poll_time(options_.where()));
  std::scoped_lock lock(shared_mutex_);
  stream_to_drain_ = stream_;
}

void receiver_core::loading_starts(load_operation& load) {
  auto const now = clock::now();
  if (load.loading.start(now)) load.stages.add(update_stage::wait, load.loading.ended(), now);
}

void receiver_core::waits_for_more(load_operation& load) {
  bool const asked = load.how == load_operation::way::into || load.on_bucket;
  if (load.over || load.aborting || !asked || load.loading.runs()) return;
  if (load.checking_since || load.all_copied_at != clock::time_point()) return;
  load.stages.begins(update_stage::wait);
}

/// Stretches of several buckets may overlap: what counts is that there was one.
void receiver_core::loading_ends(load_operation& load, clock::time_point now) {
  load.stages.times[update_stage::load] += load.loading.stop(now);
}

/// Nobody reads the live set any more: brings the new version there.
void receiver_core::copy_over(std::shared_ptr<load_operation> const& load) {
  try {
    ops_.clear();
    load->shadow->copying(*load->part, arriving_, ops_);
    held_sender_ = {}; // as in begin_writing: the live set is written now
    copy_for_commit(load);
  } catch (...) {
    auto const what = session::as_transfer_error(std::current_exception(), errc::device_failed);
    fail_commit(load, failure(what));
  }
}

/// Queues `ops_`, after which the version is committed.
void receiver_core::copy_for_commit(std::shared_ptr<load_operation> const& load) {
  if (!ops_.empty()) stream().copy(ops_);
  session::copied what;
  what.whose = load;
  what.what = session::copied::kind::commit;
  stream().then(std::move(what));
  ++load->copies_in_flight;
}

void receiver_core::fail_commit(std::shared_ptr<load_operation> const& load, failure error) {
  std::string const words = error.text();
  auto const code = session::as_errc(error.code(), errc::device_failed);
  end_load(load, std::move(error));
  if (!machine_ || load->session != session_) return;
  failpoint<side::receiver, "commit_failed">();
  machine_->commit_failed(code, words, clock::now());
  if (closing_) return say_goodbye();
  pump();
}

void receiver_core::commit(std::shared_ptr<load_operation> const& load) {
  if (load->shadow)
    load->shadow->committed(*load->part);
  else if (load->into)
    load->into->committed(*load->part);
  // Destinations of which this update had but a part may still be torn from before: then we hold nothing.
  held_sender_ = load->into && load->into->torn() ? protocol::bytes16{} : load->sender;
  held_update_ = load->what.update;
  held_version_ = load->what.version;
  {
    std::scoped_lock lock(shared_mutex_);
    status_.version = load->what.version;
  }
  load->stages.add(update_stage::commit, load->all_copied_at, clock::now());
  if (machine_ && load->session == session_) {
    failpoint<side::receiver, "commit_done">();
    machine_->commit_done(clock::now());
    if (closing_) say_goodbye();
    pump(); // says committed, unless a pump is at it already
  }
  end_load(load, {});
}

void receiver_core::give_up(std::shared_ptr<load_operation> const& load, std::error_code code, errc on_wire,
                            std::string text, std::string const& tensor) {
  if (load->over || load->aborting || load->committing || load_ != load || !machine_) return;
  load->because = code;
  load->error = failure(transfer_error(code, text).tensor(tensor));
  if (load->accepted) {
    failpoint<side::receiver, "give_up">();
    machine_->give_up(on_wire, std::move(text), clock::now());
  } else {
    end_load(load, load->error);
    failpoint<side::receiver, "refuse_update">();
    machine_->refuse_update(on_wire, std::move(text), clock::now());
  }
  pump();
}

void receiver_core::let_go_of_sets(load_operation& load) {
  if (load.shadow) {
    load.shadow->forget_waiting();
    load.shadow->end_load();
  } else if (load.into) {
    load.into->end_load();
  }
}

/// Completes what waits for the load. Its copies have finished.
void receiver_core::end_load(std::shared_ptr<load_operation> const& load, failure error) {
  if (load->over) return;
  load->over = true;
  load->stages.close();
  if (std::exchange(load->waits_for_leases, false)) lease_limit_.cancel();
  failpoint<side::receiver, "load_ended">();
  if (load_ == load) load_.reset();
  if (machine_ && load->session == session_) enter(session_phase::idle);
  let_go_of_sets(*load);
  if (!load->error) load->error = error;
  load->arrived.clear();
  if (mapping_ && mapping_->load == load) drop_mapping();
  pace_.cancel();
  load_report report;
  report.version = load->what.version;
  report.bytes = load->what.total_bytes;
  report.tensors = load->what.tensors;
  report.buckets = load->what.buckets;
  report.copied = load->bytes_copied;
  report.total = clock::now() - load->accepted_at;
  report.stages = load->stages.times;
  report.way = load->mapped ? route::mapped : load->ring == 0 ? route::host : route::staged;
  report.route_reason = load->route_reason;
  report.digest = load->digest;
  if (load->accepted)
    observer_.tell([&](observer& who) {
      if (!error) who.update_loaded(report);
      who.update_ended(load->what.version, !error);
    });
  if (load->mapped) mappings_used_ = clock::now();
  load->mapped.reset(); // the embedder may keep the update
  load->digests.reset();
  if (load->copies_in_flight == 0) unmap_later();
  watch_idle_mappings(mappings_used_ + options_.idle_mapping_limit());
  if (load->on_bucket) std::exchange(load->on_bucket, nullptr)->complete(load->error, {});
  if (load->on_loaded) std::exchange(load->on_loaded, nullptr)->complete(load->error, report);
}

/// Ends an aborted load once its copies are done, and tells the machine once the embedder holds no view
/// either. The load may be of a session that is over.
void receiver_core::settle(std::shared_ptr<load_operation> load) {
  if (!load || !load->aborting || load->copies_in_flight != 0) return;
  auto const current = load_; // until its views are back
  end_load(load, load->error);
  load_ = current;
  if (load->held != 0 || std::exchange(load->drained, true)) return;
  if (load_ == load) load_.reset();
  if (load->session == session_ && machine_ && !machine_->over()) {
    failpoint<side::receiver, "drained">();
    machine_->drained(clock::now());
    pump();
  }
}

copy_stream& receiver_core::stream() { return *stream_; }

void receiver_core::end_session(failure error, bool graceful) {
  failpoint<side::receiver, "session_ended">();
  attempt_.reset();
  graceful_end_ = graceful;
  session_end_ = error;
  drop_session();
  ended(graceful ? failure() : error);
  if (on_connected_) std::exchange(on_connected_, nullptr)->complete(error, {});
  if (on_update_) {
    if (graceful)
      std::exchange(on_update_, nullptr)->complete({}, {});
    else
      std::exchange(on_update_, nullptr)->complete(error, {});
  }
  end_close();
}

void receiver_core::end_close() {
  if (machine_) return;
  closing_ = false;
  close_limit_.cancel();
  for (auto& done : std::exchange(on_closed_, {})) done->complete({}, {});
}

// ---- carrying out what the machine decided ----

void receiver_core::pump() {
  if (pumping_ || !machine_) return;
  std::optional<receive_action::closed> ended;
  {
    running_guard const guard(pumping_);
    for (machine_->take(actions_); !actions_.empty(); machine_->take(actions_))
      for (auto& action : actions_) {
        try {
          std::visit(
              [&](auto& one) {
                session::between_failpoints<side::receiver>(one, [&](auto& it) {
                  if constexpr (std::is_same_v<decltype(it), receive_action::closed&>)
                    ended = it; // for last
                  else
                    act(it);
                });
              },
              action);
        } catch (...) {
          // Memory or threads ran out in the middle of it: this session can't go on.
          auto const what = session::as_transfer_error(std::current_exception(), errc::out_of_memory);
          failpoint<side::receiver, "gone">();
          machine_->gone(session::as_errc(what.code(), errc::out_of_memory), session::words_of(what),
                         clock::now());
        }
      }
  }
  auto const load = load_;
  if (ended) {
    bool const graceful = ended->code == errc::ok;
    failure error;
    if (closing_)
      error = failure(aborted_by_caller(), "the receiver was closed");
    else if (!graceful)
      error = failure(ended->code, ended->text);
    else
      error = failure(errc::not_open, "the sender has closed");
    end_session(error, graceful && !closing_);
  } else {
    arm_deadline();
  }
  settle(load);
}

void receiver_core::arm_deadline() {
  auto const next = machine_->deadline();
  // An earlier wake-up than needed is harmless, a later one is not.
  if (!next || (armed_ && *armed_ <= *next)) return;
  armed_ = next;
  deadline_.expires_at(*next);
  deadline_.async_wait([weak = weak_from_this()](std::error_code error) {
    auto const self = weak.lock();
    if (!self || error) return;
    self->armed_.reset();
    if (!self->machine_) return;
    failpoint<side::receiver, "tick">();
    self->machine_->tick(clock::now());
    self->pump();
  });
}

void receiver_core::act(receive_action::say& action) {
  if (auto* const all = std::get_if<all_copied>(&action.what); all && load_) {
    all->copied = load_->bytes_copied;
    load_->all_copied_at = clock::now();
    load_->stages.ends(update_stage::wait);
    load_->stages.begins(update_stage::commit);
  }
  if (link_) link_->say(action.what);
  if (!options_.where().is_cuda() || !load_ || load_->what.total_bytes < session::worth_looking_out) return;
  if (std::holds_alternative<protocol::accept>(action.what) ||
      std::holds_alternative<all_copied>(action.what))
    lookout_->keep(session::answer_time);
}

void receiver_core::act(receive_action::greeted& action) {
  sender_ = action.sender;
  attempt_.reset();
  enter(session_phase::idle);
  if (on_connected_) std::exchange(on_connected_, nullptr)->complete({}, {});
}

void receiver_core::act(receive_action::map_ring& action) {
  struct job_input {
    unique_fd fd;
  };
  auto const input = std::make_shared<job_input>();
  input->fd = std::move(incoming_fd_);
  auto map = [memory = memory_, where = options_.where(), what = action.what, input] {
    auto result = std::make_shared<mapped_ring>();
    result->slot_bytes = what.slot_bytes;
    result->slots = what.slots;
    std::uint64_t bytes = 0;
    if (__builtin_mul_overflow(what.slot_bytes, std::uint64_t(what.slots), &bytes))
      throw transfer_error(errc::overflow, "the sender's ring has an impossible size");
    if (what.on_device) {
      if (!where.is_cuda())
        throw transfer_error(errc::not_reachable,
                             "this receiver loads into host memory and can't map a CUDA device, " +
                                 memory::to_string(what.origin));
      result->memory = memory->get(where)->import_region(std::move(input->fd), bytes, what.origin);
    } else {
      result->memory = memory->get(device::host())->import_region(std::move(input->fd), bytes, {});
      if (where.is_cuda()) result->registration = memory->get(where)->register_host(result->memory);
    }
    return result;
  };
  auto then = [weak = weak_from_this(), session = session_,
               id = action.what.id](std::exception_ptr error, std::shared_ptr<mapped_ring> ring) {
    auto const self = weak.lock();
    if (!self || self->session_ != session || !self->machine_) return;
    if (error) {
      auto const what = session::as_transfer_error(error, errc::not_reachable);
      failpoint<side::receiver, "ring_refused">();
      self->machine_->ring_refused(id, session::as_errc(what.code(), errc::not_reachable),
                                   session::words_of(what), clock::now());
    } else {
      self->rings_[id] = std::move(ring);
      failpoint<side::receiver, "ring_mapped">();
      self->machine_->ring_mapped(id, clock::now());
    }
    self->pump();
  };
  offload_.run(strand_, std::move(map), std::move(then));
}

void receiver_core::act(receive_action::look_up_manifest& action) {
  auto const found = std::find_if(manifests_.begin(), manifests_.end(), [&](auto const& known) {
    return known->layout() == action.what.layout && known->tensors().size() == action.what.tensors &&
           known->buckets().size() == action.what.buckets && known->total_bytes() == action.what.total_bytes;
  });
  if (found == manifests_.end()) {
    failpoint<side::receiver, "manifest_unknown">();
    return machine_->manifest_unknown(clock::now());
  }
  std::rotate(found, found + 1, manifests_.end());
  failpoint<side::receiver, "manifest_known">();
  machine_->manifest_known(manifests_.back()->bucket_sizes(), clock::now());
}

void receiver_core::act(receive_action::read_manifest& action) {
  wanted_update_ = action.what.update;
  unread_.emplace(unread_list{action.what, action.bytes, std::move(incoming_fd_), nullptr});
  if (!reading_) read_next();
}

void receiver_core::act(receive_action::look_up_placement& action) {
  auto const found = std::find_if(placements_.begin(), placements_.end(), [&](auto const& known) {
    return known.id == action.what.placement && known.layout == action.what.layout;
  });
  if (found == placements_.end()) {
    failpoint<side::receiver, "placement_unknown">();
    return machine_->placement_unknown(clock::now());
  }
  std::rotate(found, found + 1, placements_.end());
  failpoint<side::receiver, "placement_known">();
  machine_->placement_known(placements_.back().needed, clock::now());
}

void receiver_core::act(receive_action::read_placement& action) {
  wanted_update_ = action.what.update;
  unread_.emplace(unread_list{action.what, action.bytes, std::move(incoming_fd_), manifests_.back()});
  if (!reading_) read_next();
}

/// Lists are read one at a time, and only the newest waits: a sender that takes back what it has just
/// announced, again and again, must not pile up descriptors here.
void receiver_core::read_next() {
  struct list {
    std::shared_ptr<plan::manifest const> manifest;
    std::shared_ptr<plan::placement const> placement;
  };
  auto const fd = std::make_shared<unique_fd>(std::move(unread_->fd));
  auto const what = unread_->what;
  bool const is_manifest = unread_->placement_of == nullptr;
  auto read = [memory = memory_, fd, what, bytes = unread_->bytes, of = unread_->placement_of] {
    auto const host = memory->get(device::host());
    list result;
    if (of)
      result.placement = read_placement_from(*host, std::move(*fd), bytes, *of);
    else
      result.manifest = read_from(*host, std::move(*fd), bytes, what);
    return result;
  };
  unread_.reset();
  auto then = [weak = weak_from_this(), session = session_, what, is_manifest](std::exception_ptr error,
                                                                               list result) {
    auto const self = weak.lock();
    if (!self) return;
    self->reading_ = false;
    if (self->unread_) { // of a later update, so nobody wants this one any more
      try {
        return self->read_next();
      } catch (...) {
        auto const why = session::as_transfer_error(std::current_exception(), errc::out_of_memory);
        self->machine_->gone(session::as_errc(why.code(), errc::out_of_memory), session::words_of(why),
                             clock::now());
        return self->pump();
      }
    }
    if (self->session_ != session || !self->machine_ || self->wanted_update_ != what.update) return;
    if (error) {
      auto const why = session::as_transfer_error(error, errc::protocol_error);
      auto const code = session::as_errc(why.code(), errc::protocol_error);
      if (is_manifest) {
        failpoint<side::receiver, "manifest_bad">();
        self->machine_->manifest_bad(code, session::words_of(why), clock::now());
      } else {
        failpoint<side::receiver, "placement_bad">();
        self->machine_->placement_bad(code, session::words_of(why), clock::now());
      }
    } else if (is_manifest) {
      if (self->manifests_.size() == manifests_kept) self->manifests_.erase(self->manifests_.begin());
      auto sizes = result.manifest->bucket_sizes();
      self->manifests_.push_back(std::move(result.manifest));
      failpoint<side::receiver, "manifest_known">();
      self->machine_->manifest_known(std::move(sizes), clock::now());
    } else {
      if (self->placements_.size() == placements_kept) self->placements_.erase(self->placements_.begin());
      auto needed = result.placement->needed_buckets(*self->manifests_.back());
      self->placements_.push_back({what.placement, what.layout, std::move(result.placement), needed});
      failpoint<side::receiver, "placement_known">();
      self->machine_->placement_known(std::move(needed), clock::now());
    }
    self->pump();
  };
  offload_.run(strand_, std::move(read), std::move(then));
  reading_ = true;
}

void receiver_core::act(receive_action::offer& action) {
  auto const load = std::make_shared<load_operation>();
  load->core = shared_from_this();
  load->session = session_;
  load->announced_at = announced_at_;
  load->offered_at = clock::now();
  load->stages = std::move(announced_stages_);
  load->stages.ends(update_stage::announce);
  load->stages.begins(update_stage::decide);
  load->sender = sender_;
  load->what = action.what;
  load->manifest = manifests_.back(); // the one that was just known
  if (load->what.placement != 0 && !placements_.empty() && placements_.back().id == load->what.placement &&
      placements_.back().layout == load->what.layout)
    load->placement = placements_.back().what;
  load_ = load;
  enter(session_phase::offered);
  update offered{load};
  if (on_update_)
    std::exchange(on_update_, nullptr)->complete({}, std::optional<update>(std::move(offered)));
  else
    unclaimed_ = std::move(offered);
}

void receiver_core::act(receive_action::bucket& action) {
  auto const load = load_;
  auto const ring = rings_.find(action.ring);
  if (!load || load->aborting || ring == rings_.end()) return;
  load->ring = action.ring;
  load->slots = ring->second->slots;
  auto const& memory = ring->second->memory;
  std::byte const* const base = memory->data() + action.slot * ring->second->slot_bytes;
  auto const pieces = load->manifest->pieces_of(action.bucket);
  if (load->how == load_operation::way::by_bucket) {
    auto held = std::make_shared<held_bucket>();
    held->load = load;
    held->ring = ring->second;
    held->seq = action.seq;
    held->number = action.bucket;
    held->bytes = action.bytes;
    held->slot = base;
    held->pieces.reserve(pieces.size());
    for (plan::piece const& piece : pieces) {
      bucket_piece view;
      view.tensor = piece.tensor;
      view.tensor_offset = piece.tensor_offset;
      view.bytes = piece.bytes;
      view.data = base + piece.bucket_offset;
      view.where = memory->where();
      held->pieces.push_back(view);
    }
    held->arrived_at = clock::now();
    ++load->held;
    load->arrived.push_back(std::move(held));
    return give_bucket(*load);
  }
  try {
    ops_.clear();
    if (!load->wrote) begin_writing(*load);
    auto const beside = ops_.size(); // what a shadow set needs
    for (plan::piece const& piece : pieces)
      if (!load->mapped || !load->placement->tensors[piece.tensor].mapped())
        load->part->scatter.ops_for_piece(piece, base, memory->where(), ops_);
    stream().copy(ops_);
    loading_starts(*load);
    session::copied what;
    for (auto const& op : std::span(ops_).subspan(beside)) what.moved += memory::bytes_of(op);
    load->bytes_copied += what.moved;
    what.whose = load;
    what.shown = {side::receiver, update_stage::load};
    what.from = ring->second;
    what.seq = action.seq;
    what.bucket = action.bucket;
    what.bytes = action.bytes;
    what.slot = base;
    stream().then(std::move(what));
    ++load->copies_in_flight;
  } catch (...) {
    auto const what = session::as_transfer_error(std::current_exception(), errc::device_failed);
    give_up(load, what.code(), session::as_errc(what.code(), errc::device_failed), session::words_of(what));
  }
}

void receiver_core::act(receive_action::look&) {
  // Not from here: the machine is in the middle of its actions, and messages may come with descriptors.
  asio::post(strand_, [weak = weak_from_this(), session = session_] {
    auto const self = weak.lock();
    if (!self || self->session_ != session || !self->link_) return;
    auto const link = self->link_;
    if (link->has_more_to_say() && self->load_) // all_copied is not in the sender's hands
      return self->give_up(self->load_, make_error_code(errc::peer_silent), errc::peer_silent,
                           "the sender reads nothing of what it is told, and so can't know of a commit");
    link->hear_now();
    if (self->session_ != session || !self->machine_) return;
    self->lookout_->rest(); // no answer comes
    failpoint<side::receiver, "nothing_heard">();
    self->machine_->nothing_heard(clock::now());
    self->pump();
  });
}

void receiver_core::act(receive_action::commit& action) {
  auto const load = load_;
  if (!load) return;
  load->committing = true;
  load->route_reason = std::move(action.route_reason);
  enter(session_phase::committing);
  if (!load->into) return commit(load);
  try {
    bool const nothing_came = !load->wrote;
    ops_.clear();
    if (nothing_came) begin_writing(*load);
    if (load->shadow && load->shadow->copies_at_commit()) {
      if (free_of_leases(load, true)) copy_over(load);
    } else if (nothing_came && !ops_.empty()) {
      copy_for_commit(load);
    } else {
      commit(load);
    }
  } catch (...) {
    fail_commit(load, failure(session::as_transfer_error(std::current_exception(), errc::device_failed)));
  }
}

// ---- the sender's own tensors ----

void receiver_core::mapping_begins(load_operation& load) {
  load.mapping_since = clock::now();
  load.stages.ends(update_stage::decide);
  load.stages.begins(update_stage::map);
}

void receiver_core::accept_into(std::shared_ptr<load_operation> const& load) {
  if (!load->placement) {
    if (options_.use_route() == route_choice::mapped && load->what.total_bytes != 0)
      return turn_down(load, transfer_error(errc::not_reachable,
                                            "this receiver allows the mapped route only, and the sender's "
                                            "tensors can't be mapped"));
    return accept_compared(load, load_operation::way::into);
  }
  if (unmappable_ == load->what.placement) return accept_unmapped(load, unmappable_why_);
  auto known = load->part->mapped ? load->part->mapped->get() : nullptr;
  if (known && known->placement == load->what.placement && known->sender == load->sender) {
    load->mapped = std::move(known);
    return accept_compared(load, load_operation::way::into);
  }
  mapping_begins(*load);
  mapping_.emplace();
  mapping_->load = load;
  mapping_->wanted.resize(load->placement->segments.size());
  for (std::uint32_t i = 0; i < load->placement->tensors.size(); ++i)
    if (auto const& one = load->placement->tensors[i]; one.mapped() && load->part->scatter.wants(i))
      mapping_->wanted[one.segment] = true;
  map_next_segment();
}

/// Whether the next segment of the placement is mapped, or not needed here.
bool receiver_core::is_mapped() const {
  auto const& said = mapping_->load->placement->segments[mapping_->segment];
  auto const at = segments_.find(said.id);
  if (at == segments_.end()) return !mapping_->wanted[mapping_->segment];
  // Offsets were checked against what the placement says; what says more than there is must not be read.
  if (at->second->size() == said.bytes) return true;
  throw transfer_error(errc::bad_region, "segment " + std::to_string(said.id) + " has " +
                                             std::to_string(at->second->size()) + " bytes, not the " +
                                             std::to_string(said.bytes) + " that the placement says");
}

/// Asks for what is missing; when nothing is, the copies are prepared.
void receiver_core::map_next_segment() {
  auto const load = mapping_->load;
  auto const& segments = load->placement->segments;
  try {
    if (mapping_->next_part == 0)
      while (mapping_->segment < segments.size() && is_mapped()) ++mapping_->segment;
  } catch (...) {
    drop_mapping();
    return accept_unmapped(load,
                           failure(session::as_transfer_error(std::current_exception(), errc::bad_region)));
  }
  if (mapping_->segment == segments.size()) {
    drop_mapping();
    return prepare_copies(load);
  }
  auto const& wanted = segments[mapping_->segment];
  failpoint<side::receiver, "need_segment">();
  machine_->need_segment(wanted.id, mapping_->next_part, wanted.parts, clock::now());
  pump();
}

void receiver_core::act(receive_action::take_part& action) {
  if (!mapping_) return;
  auto const load = mapping_->load;
  auto& part = action.what;
  if (part.code != 0) {
    drop_mapping();
    return accept_unmapped(load, failure(static_cast<errc>(part.code), part.text));
  }
  memory::part_handle handle;
  handle.kind = static_cast<memory::part_kind>(part.kind);
  handle.bytes = part.bytes;
  handle.legacy = part.legacy;
  handle.fd = std::move(incoming_fd_);
  mapping_->parts.push_back(std::move(handle));
  if (!action.last) return;
  auto const& segment = load->placement->segments[mapping_->segment];
  auto const parts = std::make_shared<std::vector<memory::part_handle>>(std::exchange(mapping_->parts, {}));
  mapping_->next_part += static_cast<std::uint32_t>(parts->size());
  bool const whole = mapping_->next_part == segment.parts;
  struct mapped_so_far {
    std::shared_ptr<memory::segment_importer> importer;
    std::shared_ptr<memory::region> region; // once it is whole
  };
  auto map = [backend = backend_, importer = mapping_->importer, parts, segment, whole]() mutable {
    mapped_so_far result;
    auto const kind = static_cast<memory::part_kind>(segment.kind);
    if (!importer) importer = backend->start_import(kind, segment.bytes, segment.parts, segment.origin);
    for (auto& one : *parts) importer->add(std::move(one));
    if (whole) result.region = importer->finish();
    result.importer = std::move(importer);
    return result;
  };
  // Loads own the core, which must not stay alive for the sake of a job.
  auto then = [weak = weak_from_this(), mapped_for = std::weak_ptr(load), whole](std::exception_ptr error,
                                                                                 mapped_so_far result) {
    auto const self = weak.lock();
    if (!self) return;
    --self->mapping_jobs_;
    auto const wanting = mapped_for.lock();
    bool const wanted = wanting && self->mapping_ && self->mapping_->load == wanting;
    if (!wanted || error) {
      self->offload_.dispose(std::move(result.importer));
      self->offload_.dispose(std::move(result.region));
      if (!wanted) return self->unmap_later();
      self->drop_mapping();
      return self->accept_unmapped(wanting, failure(session::as_transfer_error(error, errc::not_reachable)));
    }
    if (whole) return self->segment_mapped(wanting, std::move(result.region));
    self->mapping_->importer = std::move(result.importer);
    self->map_next_segment();
  };
  offload_.run(strand_, std::move(map), std::move(then));
  ++mapping_jobs_;
}

void receiver_core::segment_mapped(std::shared_ptr<load_operation> const& load,
                                   std::shared_ptr<memory::region> region) {
  segments_[load->placement->segments[mapping_->segment].id] = std::move(region);
  mappings_used_ = clock::now();
  mapping_->importer.reset();
  mapping_->next_part = 0;
  ++mapping_->segment;
  map_next_segment();
}

/// Everything is mapped: resolves where each byte goes, once for this placement.
void receiver_core::prepare_copies(std::shared_ptr<load_operation> const& load) {
  auto const& placement = *load->placement;
  auto made = std::make_shared<mapped_copies>();
  made->sender = load->sender;
  made->placement = load->what.placement;
  try {
    auto ops = std::make_shared<std::vector<memory::copy_op>>();
    for (std::uint32_t i = 0; i < placement.tensors.size(); ++i) {
      if (!placement.tensors[i].mapped() || !load->part->scatter.wants(i)) continue;
      auto const& segment = *segments_.at(placement.segments[placement.tensors[i].segment].id);
      load->part->scatter.ops_for_source(
          i, placement.view(i, *load->manifest, segment.data(), segment.where()), *ops);
    }
    for (auto const& segment : placement.segments)
      if (auto const at = segments_.find(segment.id); at != segments_.end()) {
        made->segments.push_back(segment.id);
        made->mappings.push_back(at->second);
      }
    auto prepare = [backend = backend_, ops] { return backend->prepare(*ops); };
    auto then = [weak = weak_from_this(), made_for = std::weak_ptr(load), made](
                    std::exception_ptr error, std::shared_ptr<memory::prepared_copies const> copies) mutable {
      auto const self = weak.lock();
      if (!self) return;
      --self->mapping_jobs_;
      made->list = std::move(copies);
      auto const wanting = made_for.lock();
      bool const wanted = wanting && self->load_ == wanting && !wanting->over && !wanting->aborting;
      if (!wanted || error) {
        self->offload_.dispose(std::move(made));
        if (!wanted) return self->unmap_later();
        return self->accept_unmapped(wanting,
                                     failure(session::as_transfer_error(error, errc::device_failed)));
      }
      auto place = std::make_shared<mapped_copies_place>(made);
      if (auto const before = std::exchange(wanting->part->mapped, place))
        self->offload_.dispose(before->take());
      std::erase_if(self->mapped_copies_, [](auto const& weak_place) { return weak_place.expired(); });
      self->mapped_copies_.push_back(place);
      wanting->mapped = made;
      self->accept_compared(wanting, load_operation::way::into);
    };
    made.reset(); // the answer is the one that holds it
    offload_.run(strand_, std::move(prepare), std::move(then));
    ++mapping_jobs_;
  } catch (...) {
    accept_unmapped(load, failure(session::as_transfer_error(std::current_exception(), errc::not_reachable)));
  }
}

/// The tensors can't be mapped: the update comes through a ring, if that is allowed.
void receiver_core::accept_unmapped(std::shared_ptr<load_operation> const& load, failure why) {
  if (load_ != load || load->over || load->aborting || !machine_ || load->session != session_) return;
  load->mapped.reset();
  unmappable_ = load->what.placement; // not tried again in this session
  unmappable_why_ = why;
  if (options_.use_route() == route_choice::mapped)
    return turn_down(load,
                     transfer_error(why.code(), "this receiver allows the mapped route only: " + why.text()));
  accept_compared(load, load_operation::way::into, std::move(why));
}

void receiver_core::act(receive_action::read_mapped&) {
  auto const load = load_;
  if (!load || load->aborting || !load->mapped) return;
  try {
    ops_.clear();
    if (!load->wrote) begin_writing(*load);
    if (!ops_.empty()) stream().copy(ops_);
    load->next_unit = 0;
    loading_starts(*load);
    load->reading_since = clock::now();
    load->stages.begins(update_stage::load);
    read_on(load);
  } catch (...) {
    auto const what = session::as_transfer_error(std::current_exception(), errc::device_failed);
    give_up(load, what.code(), session::as_errc(what.code(), errc::device_failed), session::words_of(what));
  }
}

/// Queues the next part of a mapped load, as much of it as its pace allows; or says that all was read.
void receiver_core::read_on(std::shared_ptr<load_operation> const& load) {
  auto const& copies = *load->mapped->list;
  if (load->next_unit >= copies.units() && load->next_unit != 0) {
    load->bytes_loaded += copies.bytes();
    load->bytes_copied += copies.bytes();
    load->stages.ends(update_stage::load);
    load->stages.tell(update_stage::load, load->reading_since, load->read_until, {}, copies.bytes());
    loading_ends(*load, load->read_until);
    read_last_ = load->mapped;
    reading_took_ = load->overslept ? reading_took_ * 3 / 4 : clock::now() - load->reading_since;
    if (load->session != session_ || !machine_) return;
    observer_.tell(
        [&](observer& who) { who.bucket_moved(load->what.version, load->what.buckets, load->bytes_loaded); });
    failpoint<side::receiver, "mapped_read">();
    machine_->mapped_read(clock::now());
    pump();
    return waits_for_more(*load);
  }
  memory::portion step;
  step.first = load->next_unit;
  step.most_blocks = options_.pace().most_blocks();
  if (auto const rate = options_.pace().bytes_per_second(); rate != 0 && copies.bytes() != 0) {
    using seconds = std::chrono::duration<double>;
    double const units_per_second =
        static_cast<double>(copies.units()) / static_cast<double>(copies.bytes()) * static_cast<double>(rate);
    auto const due = load->reading_since + std::chrono::duration_cast<clock::duration>(
                                               seconds(static_cast<double>(step.first) / units_per_second));
    if (due > clock::now()) {
      pace_.expires_at(due);
      pace_.async_wait([weak = weak_from_this(), load](std::error_code error) {
        auto const self = weak.lock();
        if (self && !error && self->load_ == load && !load->aborting && !load->over) self->read_on(load);
      });
      return;
    }
    step.count =
        std::max<std::uint64_t>(1, static_cast<std::uint64_t>(units_per_second * seconds(pace_step).count()));
  }
  load->next_unit = step.count >= copies.units() - step.first ? copies.units() : step.first + step.count;
  if (copies.units() == 0) load->next_unit = 1;
  try {
    stream().repeat(copies, step);
    session::copied what;
    what.whose = load;
    what.from = load->mapped;
    what.what = session::copied::kind::mapped;
    stream().then(std::move(what));
    if (step.count == memory::portion().count && read_last_.lock() == load->mapped)
      stream().expect(reading_took_, [weak = weak_from_this()] {
        if (auto const self = weak.lock()) self->nearly_read();
      });
    ++load->copies_in_flight;
  } catch (...) {
    auto const what = session::as_transfer_error(std::current_exception(), errc::device_failed);
    give_up(load, what.code(), session::as_errc(what.code(), errc::device_failed), session::words_of(what));
  }
}

/// By now what both sides do at the end of an update has left their processors' caches, and would take two to
/// three times as long (docs/performance.md): a message that asks for nothing brings it back.
void receiver_core::nearly_read() {
  if (link_ && load_ && !load_->aborting && load_->what.total_bytes >= session::worth_looking_out)
    link_->say(protocol::alive{});
}

void receiver_core::act(receive_action::unmap& action) {
  to_unmap_.insert(to_unmap_.end(), action.segments.begin(), action.segments.end());
  unmap_later();
}

/// Unmaps what the sender wants back, off the loop, and says so; once nobody reads or maps.
void receiver_core::unmap_later() {
  if (to_unmap_.empty() || !machine_ || mapping_jobs_ != 0 || (load_ && load_->mapped)) return;
  auto const ids = std::exchange(to_unmap_, {});
  auto const gone = std::make_shared<std::vector<std::shared_ptr<void const>>>(take_segments(ids));
  auto unmap = [gone] {
    gone->clear();
    return true;
  };
  auto then = [weak = weak_from_this(), session = session_, ids](std::exception_ptr, bool) {
    auto const self = weak.lock();
    if (!self || self->session_ != session || !self->machine_) return;
    failpoint<side::receiver, "unmapped">();
    self->machine_->unmapped(ids, clock::now());
    self->pump();
  };
  offload_.run(strand_, std::move(unmap), std::move(then));
}

std::vector<std::uint64_t> receiver_core::all_segments() const {
  std::vector<std::uint64_t> all;
  for (auto const& [id, segment] : segments_) all.push_back(id);
  return all;
}

std::vector<std::shared_ptr<void const>> receiver_core::take_segments(std::vector<std::uint64_t> const& ids) {
  std::vector<std::shared_ptr<void const>> taken;
  for (auto& copies : take_copies_of(ids)) taken.push_back(std::move(copies));
  for (auto const id : ids) {
    auto const at = segments_.find(id);
    if (at == segments_.end()) continue;
    taken.push_back(std::move(at->second));
    segments_.erase(at);
  }
  return taken;
}

void receiver_core::watch_idle_mappings(clock::time_point until) {
  if (segments_.empty() || options_.idle_mapping_limit() == countable(milliseconds::max())) return;
  idle_.expires_at(until);
  idle_.async_wait([weak = weak_from_this()](std::error_code error) {
    if (auto const self = weak.lock(); self && !error) self->drop_idle_mappings();
  });
}

/// The sender is not told: what it then wants back it still asks for, and is answered.
void receiver_core::drop_idle_mappings() {
  if (load_ || mapping_ || mapping_jobs_ != 0) // most likely an update that uses them
    return watch_idle_mappings(clock::now() + options_.idle_mapping_limit());
  // The timer may have run out just before an update used them.
  if (auto const until = mappings_used_ + options_.idle_mapping_limit(); clock::now() < until)
    return watch_idle_mappings(until);
  for (auto& one : take_segments(all_segments())) offload_.dispose(std::move(one));
}

std::vector<std::shared_ptr<mapped_copies const>>
receiver_core::take_copies_of(std::vector<std::uint64_t> const& segments) {
  std::vector<std::shared_ptr<mapped_copies const>> taken;
  for (auto const& weak : mapped_copies_) {
    auto const place = weak.lock();
    auto const copies = place ? place->get() : nullptr;
    if (copies && std::any_of(copies->segments.begin(), copies->segments.end(), [&](std::uint64_t segment) {
          return std::find(segments.begin(), segments.end(), segment) != segments.end();
        }))
      taken.push_back(place->take());
  }
  return taken;
}

void receiver_core::drop_mapping() {
  if (!mapping_) return;
  offload_.dispose(std::move(mapping_->importer));
  mapping_.reset();
}

/// Before the first copy of a load. Appends to `ops_` what a shadow set needs beside the buckets.
void receiver_core::begin_writing(load_operation& load) {
  stream().start_after(load.when);
  load.wrote = true;
  arriving_.version = load.what.version;
  if (load.shadow) return load.shadow->writing(*load.part, arriving_, ops_);
  load.into->writing(*load.part, arriving_);
  held_sender_ = {}; // should we come back before it is whole, we hold nothing
}

void receiver_core::act(receive_action::abort& action) {
  wanted_update_ = 0;
  unread_.reset();
  drop_mapping();
  auto const load = load_;
  if (!load) { // nobody has seen it yet, or it was just given back
    failpoint<side::receiver, "drained">();
    machine_->drained(clock::now());
    return;
  }
  if (load->committing) return; // the session has ended; what it ordered is done all the same
  load->aborting = true;
  if (!load->error && action.by_peer && action.code != errc::group_incomplete) {
    // Why, in its words; what it is for this side is always the same.
    transfer_error error(errc::peer_aborted, "the sender gave version " + std::to_string(load->what.version) +
                                                 " up: " + action.text);
    load->error = failure(error.peer_words(action.text));
  } else if (!load->error) {
    load->error = failure(transfer_error(action.code, action.text).peer_words(action.text));
  }
  if (unclaimed_) {
    load->over = true;
    load_.reset();
    enter(session_phase::idle);
    unclaimed_.reset();
    failpoint<side::receiver, "drained">();
    machine_->drained(clock::now());
    return;
  }
  auto const waiting = std::exchange(load->arrived, {}); // never given: no views of the embedder's
  // settle(), at the end of the pump, does the rest.
}

} // namespace ropeway::detail
