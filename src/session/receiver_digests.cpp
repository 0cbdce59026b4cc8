// A receiver's digests: what is prepared before a load is accepted, computed when buckets and mapped tensors
// were read, and compared before all_copied. Part of ropeway; Apache-2.0.
#include "session/failpoint.hpp"
#include "session/receiver_core.hpp"

namespace ropeway::detail {

using namespace protocol;
using session::digester;
using session::failpoint;
using session::received_digests;
using session::side;

void receiver_core::act(receive_action::take_digest_table& action) {
  offload_.dispose(std::move(table_.memory));
  table_ = {};
  table_.id = action.id;
  table_.bytes = action.bytes;
  if (!digester_) {
    auto done = [weak = weak_from_this()](session::copied& what, std::error_code error) {
      if (auto const self = weak.lock()) self->digested(what, error);
    };
    auto made = std::make_shared<digester>(strand_, memory_, std::move(done));
    std::scoped_lock lock(shared_mutex_);
    digester_ = std::move(made);
  }
  auto const fd = std::make_shared<unique_fd>(std::move(incoming_fd_));
  auto map = [memory = memory_, fd, bytes = action.bytes] {
    return memory->get(device::host())->import_region(std::move(*fd), bytes, {});
  };
  auto then = [weak = weak_from_this(), session = session_,
               id = action.id](std::exception_ptr error, std::shared_ptr<memory::region> region) {
    auto const self = weak.lock();
    if (self && self->session_ == session && self->table_.id == id)
      self->table_mapped(id, error, std::move(region));
  };
  offload_.run(strand_, std::move(map), std::move(then));
}

void receiver_core::table_mapped(std::uint64_t id, std::exception_ptr error,
                                 std::shared_ptr<memory::region> region) {
  table_.memory = std::move(region);
  if (error) {
    auto const what = session::as_transfer_error(error, errc::bad_region);
    table_.why_not = failure(what.code(), "the sender's table of digests: " + session::words_of(what));
  }
  auto const load = load_;
  if (load && load->what.digests == id && std::exchange(load->comparing, false)) compare_digests(load);
}

received_digests::purpose receiver_core::purpose_of(load_operation const& load,
                                                    load_operation::way how) const {
  received_digests::purpose of;
  of.manifest = load.manifest;
  of.where = options_.where();
  if (how != load_operation::way::into) return of;
  of.into = &load.part->scatter;
  of.mapped = load.mapped;
  if (!load.mapped) return of;
  of.placement = load.placement;
  of.tensors.resize(load.placement->tensors.size());
  for (std::uint32_t i = 0; i < of.tensors.size(); ++i) {
    auto const& placed = load.placement->tensors[i];
    if (!placed.mapped() || !load.part->scatter.wants(i)) continue;
    auto const& segment = *segments_.at(load.placement->segments[placed.segment].id);
    of.tensors[i] = load.placement->view(i, *load.manifest, segment.data(), segment.where());
  }
  return of;
}

void receiver_core::accept_compared(std::shared_ptr<load_operation> const& load, load_operation::way how,
                                    failure why_not_mapped) {
  if (load->what.digests == 0) {
    if (options_.demand_digests())
      return turn_down(load, transfer_error(errc::digest_missing, "this receiver demands digests"));
    return accepted(load, how, std::move(why_not_mapped));
  }
  if (table_.why_not) return turn_down(load, transfer_error(table_.why_not.code(), table_.why_not.text()));
  bool const by_hand = how != load_operation::way::into;
  auto const& kept = by_hand ? by_hand_ : load->part->digests;
  digester_->replace_failed();
  bool const fits = kept && kept->is_for(load->mapped) && kept->table_bytes() == table_.bytes &&
                    (!by_hand || kept->manifest() == load->manifest.get());
  if (fits) {
    load->digests = kept;
    return accepted(load, how, std::move(why_not_mapped));
  }
  load->how = how;
  if (!load->mapping_since) mapping_begins(*load);
  auto const purpose = std::make_shared<received_digests::purpose>(purpose_of(*load, how));
  // The plan may be gone when the job runs.
  auto const into = purpose->into ? std::make_shared<plan::scatter>(*purpose->into) : nullptr;
  purpose->into = into.get();
  auto prepare = [memory = memory_, purpose, into, bytes = table_.bytes] {
    return std::make_shared<received_digests>(*memory, std::move(*purpose), bytes);
  };
  auto then = [weak = weak_from_this(), made_for = std::weak_ptr(load), how, by_hand,
               why_not_mapped](std::exception_ptr error, std::shared_ptr<received_digests> made) {
    auto const self = weak.lock();
    if (!self) return;
    --self->mapping_jobs_;
    auto const wanting = made_for.lock();
    bool const wanted = wanting && self->load_ == wanting && !wanting->over && !wanting->aborting;
    if (!wanted || error) {
      self->offload_.dispose(std::move(made));
      if (!wanted) return self->unmap_later();
      return self->turn_down(wanting, session::as_transfer_error(error, errc::out_of_memory));
    }
    if (self->table_.why_not) // its job came before this one
      return self->turn_down(wanting,
                             transfer_error(self->table_.why_not.code(), self->table_.why_not.text()));
    auto& place = by_hand ? self->by_hand_ : wanting->part->digests;
    self->offload_.dispose(std::exchange(place, made));
    wanting->digests = std::move(made);
    self->accepted(wanting, how, why_not_mapped);
  };
  if (load->manifest->buckets().empty()) { // nothing is slow, and a commit may follow at once
    auto made = prepare();
    ++mapping_jobs_;
    return then(nullptr, std::move(made));
  }
  offload_.run(strand_, std::move(prepare), std::move(then));
  ++mapping_jobs_;
}

void receiver_core::accepted(std::shared_ptr<load_operation> const& load, load_operation::way how,
                             failure why_not_mapped) {
  accept(*load, how, std::move(why_not_mapped));
  if (how == load_operation::way::by_bucket) give_bucket(*load);
  pump();
}

bool receiver_core::digest_bucket(std::shared_ptr<load_operation> const& load, session::copied& what) {
  if (!load->digests || load->aborting || load->over || load->session != session_ || !what.slot) return false;
  auto const ring = rings_.find(load->ring);
  if (ring == rings_.end() || !load->digests->needs_bucket(what.bucket)) return false;
  device const where = ring->second->memory->where();
  memory::digest_run how;
  how.first = what.bucket;
  how.count = 1;
  how.base = what.slot;
  how.begin = !load->digested_slots;
  how.fetch = false;
  session::copied next;
  next.whose = load;
  next.from = what.from;
  next.to = load->digests;
  next.seq = what.seq;
  next.bucket = what.bucket;
  next.bytes = what.bytes;
  next.shown = {side::receiver, update_stage::digest};
  next.what = what.what == session::copied::kind::view ? session::copied::kind::digest_of_view
                                                       : session::copied::kind::digest_of_bucket;
  try {
    digester::run_of const run{load->digests->of_slots(where), how};
    digester_->run({&run, 1}, {}, std::move(next));
  } catch (...) {
    auto const error = session::as_transfer_error(std::current_exception(), errc::device_failed);
    give_up(load, error.code(), session::as_errc(error.code(), errc::device_failed),
            session::words_of(error));
    return false;
  }
  load->digested_slots = where;
  return true;
}

void receiver_core::act(receive_action::check_digests&) {
  auto const load = load_;
  if (!load || load->aborting || !load->digests) return;
  load->checking_since = clock::now();
  load->stages.ends(update_stage::wait);
  load->stages.begins(update_stage::digest);
  session::copied what;
  what.whose = load;
  what.from = load->digests;
  what.to = load->mapped;
  what.what = session::copied::kind::digest;
  try {
    digester_->run(load->digests->last_runs(load->digested_slots), {}, std::move(what));
    ++load->copies_in_flight;
  } catch (...) {
    auto const error = session::as_transfer_error(std::current_exception(), errc::device_failed);
    give_up(load, error.code(), session::as_errc(error.code(), errc::device_failed),
            session::words_of(error));
  }
}

/// A bucket was seen to be digested, or everything that is in place.
void receiver_core::digested(session::copied& what, std::error_code error) {
  auto const load = std::static_pointer_cast<load_operation>(what.whose);
  if (what.what == session::copied::kind::digest_of_view)
    --load->held;
  else if (load->copies_in_flight != 0) // abandon() forgets them
    --load->copies_in_flight;
  // Perhaps the last to hold a mapping.
  if (load->session != session_) offload_.dispose(std::exchange(what.to, nullptr));
  if (error) {
    give_up(load, error, errc::device_failed, "the receiver's device failed: " + error.message());
  } else if (what.what == session::copied::kind::digest) {
    load->comparing = !table_.memory && !table_.why_not;
    if (!load->comparing) compare_digests(load);
  } else {
    load->stages.add(update_stage::digest, what.began, what.ended, what.bucket);
    loaded(load, what.seq, what.bytes);
  }
  settle(load);
}

void receiver_core::compare_digests(std::shared_ptr<load_operation> const& load) {
  if (load->over || load->aborting || load_ != load || !machine_ || load->session != session_) return;
  std::optional<received_digests::difference> wrong;
  try {
    if (!table_.memory) throw transfer_error(table_.why_not.code(), table_.why_not.text());
    wrong = load->digests->compare({table_.memory->data(), table_.memory->size()});
  } catch (...) {
    auto const error = session::as_transfer_error(std::current_exception(), errc::bad_region);
    return give_up(load, error.code(), session::as_errc(error.code(), errc::bad_region),
                   session::words_of(error));
  }
  load->stages.add(update_stage::digest, *load->checking_since, clock::now(), {}, load->digests->bytes());
  if (wrong)
    return give_up(load, make_error_code(errc::digest_mismatch), errc::digest_mismatch,
                   wrong->words + " is not what the sender has", wrong->tensor);
  load->digest = load->digests->whole();
  failpoint<side::receiver, "digests_agree">();
  machine_->digests_agree(session::bytes_of(*load->digest), clock::now());
  pump();
}

} // namespace ropeway::detail
