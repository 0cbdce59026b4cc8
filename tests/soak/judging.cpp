#include <algorithm>
#include <sstream>
#include <utility>

#include "conductor.hpp"
#include "ropeway/error.hpp"

namespace ropeway::soak {

/// What a receiver says in its hello is what it has committed, unless another update has overwritten some of
/// it since; so a commit whose answer never came is settled.
void conductor::check_list(answer const& list) {
  for (std::uint32_t i = 0; i < list.peers; ++i) {
    auto const& line = list.lines[i];
    auto const who =
        std::ranges::find_if(receivers_, [&](auto const& one) { return one->name == line.name.view(); });
    bool holds = (*who)->committed_from == instance_;
    if (!line.holds && (*who)->may_be_torn) holds = false;
    if (holds != line.holds || (holds && line.version != (*who)->committed_version))
      throw wrong(
          (*who)->name + " holds " +
          (holds ? "version " + std::to_string((*who)->committed_version) : "no version of this sender") +
          ", and the sender says " + (line.holds ? "version " + std::to_string(line.version) : "none"));
    ++counted_.held;
    counted_.settled += std::exchange((*who)->unconfirmed, false);
  }
}

bool conductor::may_find_no_way(child const& who) const {
  return route_of(of_.seed, who.name, of_.how != mode::random) == route_choice::mapped;
}

/// No fault, of its own or of anybody whom it depends on, keeps this receiver from committing.
bool conductor::must_commit(child const& who, order const& to_sender) const {
  if (to_sender.goes_wrong != fault::none || who.late) return false;
  if (who.now.goes_wrong != fault::none && who.now.goes_wrong != fault::nap) return false;
  if (who.now.into == style::whole && to_sender.partial) return false; // refused: something is missing
  if (may_find_no_way(who)) return false;
  if (!who.grouped()) return true;
  auto const mate = std::ranges::find_if(
      receivers_, [&](auto const& one) { return one->grouped() && one->slot != who.slot; });
  return mate != receivers_.end() && !(*mate)->late && !may_find_no_way(**mate) &&
         ((*mate)->now.goes_wrong == fault::none || (*mate)->now.goes_wrong == fault::nap) &&
         !((*mate)->now.into == style::whole && to_sender.partial);
}

void conductor::judge_receiver(child& who, peer_line const* line, order const& to_sender) {
  auto const& came = who.what_came;
  bool const told = who.came;
  auto const complain = [&](std::string const& what) { throw wrong(who.name + " " + what); };
  if (told && !came.exact) complain("holds something else than it should: " + std::string(came.text.view()));
  bool const committed = told && came.committed;
  if (told) {
    counted_.bytes_compared += came.bytes;
    if (came.seen) ++counted_.checks;
  }
  if (committed) {
    who.committed_from = instance_;
    who.committed_version = to_sender.version;
  }
  bool const refused =
      line && static_cast<outcome>(line->what) == outcome::refused; // before it wrote anything
  who.may_be_torn = !committed && (who.may_be_torn || !refused);
  auto const why = std::string(came.category.view()) + " " + std::to_string(came.code) + ", " +
                   std::string(came.text.view());
  if (sender_->gone) return; // there is no report
  if (!line) {
    if (committed) complain("has committed and is not in the report");
    if (!who.late) complain("was connected and is not in the report");
    return;
  }
  auto const what = static_cast<outcome>(line->what);
  auto const said = std::string(ropeway::name(what)) + " (" + std::string(line->text.view()) + ")";
  ++counted_.outcomes[std::string(ropeway::name(what))];
  if (what == outcome::committed)
    ++counted_.routes[std::string(ropeway::name(static_cast<route>(line->way)))];
  if (what == outcome::unconfirmed) { // settle() compares it with the next hello
    who.unconfirmed = told;
    return;
  }
  if (what == outcome::committed && told && !committed)
    complain("is reported as committed and has not: " + why);
  if (what == outcome::committed && !told && who.now.goes_wrong != fault::kill)
    complain("is reported as committed and has said nothing");
  if (what != outcome::committed && committed) complain("has committed and is reported as " + said);
  if (must_commit(who, to_sender) && what != outcome::committed)
    complain("had no reason not to commit and is reported as " + said + "; it says: " + why);
  bool const alone =
      to_sender.goes_wrong == fault::none && !who.late && !who.grouped() && !may_find_no_way(who);
  if (!alone) return;
  auto const only = [&](std::initializer_list<outcome> these) {
    if (std::ranges::find(these, what) == these.end())
      complain(std::string("was to ") + name(who.now.goes_wrong) + " and is reported as " + said);
  };
  switch (who.now.goes_wrong) {
  case fault::none:
  case fault::nap:
    if (who.now.into == style::whole && to_sender.partial) only({outcome::refused});
    break;
  case fault::refuse: only({outcome::refused}); break;
  case fault::not_now: only({outcome::skipped}); break;
  case fault::loader: only({outcome::failed}); break;
  case fault::drop: only({outcome::refused, outcome::failed}); break;
  case fault::cancel: only({outcome::committed, outcome::failed, outcome::refused}); break;
  case fault::leave: only({outcome::committed, outcome::failed, outcome::dropped, outcome::refused}); break;
  case fault::kill:
    only({outcome::committed, outcome::dropped, outcome::unconfirmed, outcome::refused});
    break;
  case fault::stall:
    only({outcome::committed, outcome::dropped, outcome::unconfirmed, outcome::skipped, outcome::refused});
    break;
  default: break;
  }
}

void conductor::judge(order const& to_sender) {
  auto const& report = sender_->report;
  std::map<std::string, peer_line const*, std::less<>> lines;
  std::size_t committed = 0;
  if (!sender_->gone)
    for (std::uint32_t i = 0; i < report.peers; ++i) {
      auto const& line = report.lines[i];
      lines[std::string(line.name.view())] = &line;
      committed += static_cast<outcome>(line.what) == outcome::committed;
    }
  if (!sender_->gone && lines.size() != report.peers) throw wrong("a receiver stands in the report twice");
  for (auto& one : receivers_) {
    ++counted_.styles[name(one->now.into)];
    if (one->now.goes_wrong != fault::none)
      ++counted_.faults[std::string("receiver: ") + name(one->now.goes_wrong)];
    auto const found = lines.find(one->name);
    judge_receiver(*one, found == lines.end() ? nullptr : found->second, to_sender);
    if (found != lines.end()) lines.erase(found);
  }
  if (!lines.empty()) throw wrong(lines.begin()->first + " stands in the report and is no receiver of ours");
  ++counted_.ways[name(to_sender.how)];
  ++counted_.memories[to_sender.release ? std::string(name(to_sender.shared)) + ", wanted back"
                                        : name(to_sender.shared)];
  if (to_sender.goes_wrong != fault::none)
    ++counted_.faults[std::string("sender: ") + name(to_sender.goes_wrong)];
  if (sender_->gone) return;
  counted_.buckets += report.buckets;
  counted_.bytes_sent += report.bytes;
  auto const code = std::error_code(report.code, report.category.view() == ropeway_category().name()
                                                     ? ropeway_category()
                                                     : std::system_category());
  auto const said = std::string(report.category.view()) + " " + std::to_string(report.code) + ", " +
                    std::string(report.text.view());
  if (code)
    ++counted_.errors[report.category.view() == ropeway_category().name() ? code.message() : "cancelled"];
  bool const too_few = code == make_error_code(errc::too_few_receivers);
  if (report.threw) {
    if (code != make_error_code(errc::source_failed))
      throw wrong("the source threw and the send said: " + said);
    if (committed != 0) throw wrong("the source threw and a receiver is reported as committed");
  } else if (to_sender.goes_wrong == fault::cancel && code.value() == ECANCELED) {
    // as it was to be
  } else if (code && !too_few) {
    throw wrong("the send failed: " + said);
  } else if (too_few != (committed == 0)) {
    throw wrong(std::to_string(committed) + " receivers have committed and the send said: " + said);
  }
}

std::string conductor::orders_in_words() const {
  std::ostringstream text;
  auto const add = [&](order const& one) {
    text << name(one.goes_wrong);
    if (one.goes_wrong == fault::none) return;
    text << " (" << name(one.when) << ", bucket " << one.bucket << ", " << one.micros << " us)";
  };
  text << "update " << to_sender_.update << ", version " << to_sender_.version << ", layout "
       << to_sender_.layout << (to_sender_.partial ? " in part" : "") << ", as " << name(to_sender_.how)
       << ", in shared memory " << name(to_sender_.shared) << (to_sender_.moves ? ", moved" : "")
       << (to_sender_.release ? ", wanted back" : "") << "; sender: ";
  add(to_sender_);
  for (auto const& one : receivers_) {
    text << "; " << one->name << (one->late ? " (late)" : "") << " into " << name(one->now.into) << ": ";
    add(one->now);
  }
  return text.str();
}
} // namespace ropeway::soak
