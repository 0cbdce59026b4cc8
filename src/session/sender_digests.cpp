// A sender's digests: of tensors where they lie, beside whoever reads them; of what is made on the fly,
// bucket by bucket, before it is published. Part of ropeway; Apache-2.0.
#include <algorithm>
#include <asio/post.hpp>

#include "session/failpoint.hpp"
#include "session/sender_core.hpp"

namespace ropeway::detail {

using namespace protocol;
using session::digest_list;
using session::digester;
using session::failpoint;
using session::side;
using session::source_digests;

void sender_core::act(send_action::digest_source&) {
  auto const operation = current_;
  if (!operation) return;
  operation->digest_wanted = true;
  if (operation->report.buckets == 0) operation->report.digest = digests_.write_nothing();
  if (operation->report.digest) {
    // Not from here: the machine is in the middle of its actions.
    return asio::post(strand_, [self = shared_from_this(), operation] {
      if (self->current_ != operation) return;
      self->say_digested(*operation);
      self->settle();
    });
  }
  if (operation->set->on_the_fly()) return; // bucket by bucket
  if (auto list = digests_.known(operation->set->views)) return digest_source(operation, std::move(list));
  ++copies_in_flight_; // until the list is made
  auto ready = [operation](sender_core& self, std::shared_ptr<digest_list> list) {
    --self.copies_in_flight_;
    if (list && !operation->stopping) return self.digest_source(operation, std::move(list));
    self.settle();
  };
  try {
    prepare_digests(operation, std::move(ready));
  } catch (...) { // no thread to be had
    --copies_in_flight_;
    give_up_later(session::as_transfer_error(std::current_exception(), errc::out_of_memory));
  }
}

/// Makes the list of an operation's digests, off the loop, and calls `ready(*this, list)`; with null if that
/// failed, and the update is given up.
template <class Ready>
void sender_core::prepare_digests(operation_pointer const& operation, Ready ready) {
  offload_.dispose(digests_.take());
  auto const purpose = std::make_shared<source_digests::purpose>(
      digests_.purpose_of(operation->set->views, operation->set->where));
  auto make = [memory = memory_, purpose] { return source_digests::make(*memory, *purpose); };
  auto then = [weak = weak_from_this(), operation, purpose,
               ready = std::move(ready)](std::exception_ptr error, std::shared_ptr<digest_list> list) {
    auto const self = weak.lock();
    if (!self || self->current_ != operation) return;
    if (error) {
      auto const what = session::as_transfer_error(error, errc::out_of_memory);
      self->give_up(what.code(), session::as_errc(what.code(), errc::out_of_memory),
                    "digests: " + session::words_of(what));
    } else {
      self->digests_.keep(std::move(*purpose), list);
    }
    ready(*self, std::move(list));
  };
  offload_.run(strand_, std::move(make), std::move(then));
}

/// Devices wait for what the caller named by themselves; where host memory is to be digested as well, all of
/// it waits here.
void sender_core::digest_source(operation_pointer const& operation, std::shared_ptr<digest_list const> list) {
  auto const parts = list->parts();
  bool const host =
      std::any_of(parts.begin(), parts.end(), [](auto const& one) { return !one.where.is_cuda(); });
  if (operation->when.type() == ready_after::kind::nothing || !host)
    return digest_tensors(operation, std::move(list), operation->when);
  session::copied what;
  what.whose = operation;
  what.from = std::move(list);
  what.what = session::copied::kind::source_to_digest;
  wait_at_gate(*operation, std::move(what));
}

void sender_core::digest_tensors(operation_pointer const& operation, std::shared_ptr<digest_list const> list,
                                 ready_after const& when) {
  session::copied what;
  what.whose = operation;
  what.from = list;
  what.bytes = list->bytes();
  what.what = session::copied::kind::digest;
  try {
    digester::run_of const run{list.get(), {}};
    operation->read([&] {
      digester_->run({&run, 1}, when, std::move(what));
      operation->stages.begins(update_stage::digest);
      ++copies_in_flight_;
    });
  } catch (...) { give_up_later(session::as_transfer_error(std::current_exception(), errc::device_failed)); }
}

void sender_core::prepare_slot_digests(operation_pointer const& operation) {
  if (operation->report.buckets == 0 || digests_.known(operation->set->where)) return;
  auto ready = [operation](sender_core& self, std::shared_ptr<digest_list> list) {
    for (auto& what : std::exchange(operation->undigested, {})) {
      --self.copies_in_flight_;
      if (list && !operation->stopping) self.digest_packed(operation, what);
    }
    self.settle();
  };
  try {
    prepare_digests(operation, std::move(ready));
  } catch (...) { give_up_later(session::as_transfer_error(std::current_exception(), errc::out_of_memory)); }
}

bool sender_core::digest_packed(operation_pointer const& operation, session::copied& what) {
  if (!digester_ || !operation->set->on_the_fly() || operation->stopping) return false;
  auto const list = digests_.known(operation->set->where);
  if (!list) {
    operation->undigested.push_back(std::move(what));
    ++copies_in_flight_;
    return true;
  }
  memory::digest_run how;
  how.first = what.bucket;
  how.count = 1;
  how.base = what.slot;
  how.begin = operation->buckets_digesting == 0;
  how.fetch = ++operation->buckets_digesting == operation->report.buckets;
  session::copied next = what;
  next.from = list;
  next.began = {};
  next.shown = {side::sender, update_stage::digest};
  next.what = session::copied::kind::digest_of_bucket;
  try {
    digester::run_of const run{list.get(), how};
    digester_->run({&run, 1}, {}, std::move(next));
    ++copies_in_flight_;
  } catch (...) { give_up_later(session::as_transfer_error(std::current_exception(), errc::device_failed)); }
  return true;
}

void sender_core::digested(session::copied& what, std::error_code error) {
  auto const operation = current_;
  if (!operation || operation != what.whose) return;
  --copies_in_flight_;
  operation->stages.ends(update_stage::digest);
  if (error) {
    give_up(error, errc::device_failed, "the sender's device failed while digesting: " + error.message());
    return settle();
  }
  bool const of_bucket = what.what == session::copied::kind::digest_of_bucket;
  operation->stages.add(update_stage::digest, what.began, what.ended,
                        of_bucket ? std::optional(what.bucket) : std::nullopt, what.bytes);
  bool const all = !of_bucket || ++operation->buckets_digested == operation->report.buckets;
  if (all) operation->report.digest = digests_.write(*std::static_pointer_cast<digest_list const>(what.from));
  if (of_bucket) {
    failpoint<side::sender, "packed">();
    machine_.packed(what.seq, clock::now());
    pump();
  }
  if (all && operation->digest_wanted) say_digested(*operation);
  settle();
}

void sender_core::say_digested(send_operation& operation) {
  failpoint<side::sender, "digested">();
  machine_.digested(session::bytes_of(*operation.report.digest), clock::now());
  pump();
}

} // namespace ropeway::detail
