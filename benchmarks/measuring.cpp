// What is sent by whom in each study, and what is told of it. Part of ropeway; Apache-2.0.
#include <algorithm>
#include <boost/json/array.hpp>
#include <cmath>
#include <iostream>
#include <map>
#include <tuple>

#include "bench.hpp"
#include "cli/private_directory.hpp"
#include "cli/quantity.hpp"
#include "cli/table.hpp"
#include "limits.hpp"
#include "processes.hpp"
#include "results.hpp"
#include "ropeway/error.hpp"
#include "sending.hpp"

namespace ropeway::bench {
namespace {

/// The limits of all lanes, each measured once a repeat.
class limits {
 public:
  limits(plan const& of, model_memory const& held) : of_(of), held_(held) {}
  struct entry {
    std::unique_ptr<limit> copy;
    std::vector<double> seconds;
    std::uint64_t bytes = 0;
  };
  /// Null if there is none.
  entry* of(lane const& one) {
    if (!of_.limits) return nullptr;
    auto const to = one.of.receivers.front();
    for (auto const other : one.of.receivers)
      if (other != to) return nullptr;
    std::size_t const copies = one.of.ranks != 0 ? 1 : one.of.receivers.size();
    way const by = parse_way(ropeway::name(one.taken)).value();
    auto const [place, fresh] = all_.try_emplace({by, to.is_cuda(), to.ordinal(), copies});
    auto& found = place->second;
    if (fresh) {
      found.copy = make_limit(of_, by, held_, to, copies, memory_);
      found.bytes = held_.total_bytes() * copies;
    }
    return found.copy ? &found : nullptr;
  }
  void run(bool counts) {
    for (auto& [key, one] : all_) {
      if (!one.copy) continue;
      auto const start = now();
      one.copy->run();
      if (counts) one.seconds.push_back(now() - start);
    }
  }

 private:
  plan const& of_;
  model_memory const& held_;
  limit_memory memory_;
  std::map<std::tuple<way, bool, int, std::size_t>, entry> all_;
};

lane make_lane(plan const& of, std::string name, way route, std::vector<device> receivers, bool shards,
               std::string socket) {
  lane out;
  out.name = std::move(name);
  out.of = of;
  out.of.routes = {route};
  out.of.receivers = std::move(receivers);
  out.of.ranks = shards ? static_cast<std::uint32_t>(out.of.receivers.size()) : 0;
  out.of.socket = std::move(socket);
  for (std::size_t rank = 0; rank < out.of.receivers.size(); ++rank) {
    out.of.rank = static_cast<std::uint32_t>(rank);
    out.receivers.emplace_back(out.of, "--as-receiver");
  }
  return out;
}

std::vector<lane> make_lanes(plan const& of, cli::private_directory const& place) {
  std::vector<lane> lanes;
  auto const add = [&](std::string name, way route, std::vector<device> receivers, bool shards) {
    auto const socket = place.file("bench-" + std::to_string(lanes.size()) + ".sock");
    lanes.push_back(make_lane(of, std::move(name), route, std::move(receivers), shards, socket));
  };
  std::string const many = std::to_string(of.receivers.size());
  for (auto const route : of.routes) {
    bool const alone = of.receivers.size() == 1;
    switch (of.what) {
    case study::shards: add(many + " shards", route, of.receivers, true); break;
    case study::fan_out: add(many + " receivers", route, of.receivers, false); break;
    default: add(alone ? "one receiver" : many + " receivers", route, of.receivers, false);
    }
    if (of.what == study::shards || of.what == study::fan_out)
      add("one receiver", route, {of.receivers.front()}, false);
  }
  return lanes;
}

std::uint64_t moved_bytes(lane const& one) {
  std::uint64_t bytes = 0;
  for (auto const& receiver : one.each) bytes += receiver.held_bytes;
  return bytes;
}

/// To the nanosecond.
double median_us(std::vector<double> const& seconds) { return std::round(median(seconds) * 1e9) / 1e3; }

/// Those that occurred.
boost::json::object medians(stage_record const& of) {
  boost::json::object out;
  for (auto const one : all_stages)
    if (auto const middle = median_us(of.seconds[static_cast<std::size_t>(one)]); middle != 0)
      out[ropeway::name(one)] = middle;
  return out;
}

boost::json::object line_of(plan const& of, lane const& one, model_memory const& held) {
  auto line = line_of(of, of.where, one.of.receivers.front());
  line["name"] = one.name;
  line["route"] = ropeway::name(one.taken);
  line["route_asked"] = name(one.of.routes.front());
  line["why"] = one.why;
  line["memory"] = name(of.memory);
  line["prepared"] = of.prepared;
  line["receivers"] = one.of.receivers.size();
  line["tensors"] = held.entries().size();
  line["bytes"] = held.total_bytes();
  line["moved_bytes"] = moved_bytes(one);
  line["bucket_bytes"] = of.bucket_bytes;
  line["slots"] = of.slots;
  line["pace"] = to_string(one.of.paces.front());
  line["warm_up"] = of.warm_up;
  line["repeats"] = one.send.size();
  line["bytes_checked"] =
      of.check_each && of.what != study::decode ? "all, after each send" : "all, after the last send";
  line["send"] = summary(one.send, moved_bytes(one));
  line["source_free_median_s"] = median(one.source_free);
  boost::json::object stages;
  stages["announce"] = median_us(one.announce);
  stages["notice"] = median_us(one.notice);
  if (!one.copy.empty()) stages["copy"] = median_us(one.copy);
  stages[one.copy.empty() ? "copy and commit" : "commit"] = median_us(one.commit);
  stages["report"] = median_us(one.report);
  line["stages_median_us"] = std::move(stages);
  line["sender_stages_median_us"] = medians(one.sender_stages);
  line["receiver_stages_median_us"] = medians(one.receiver_stages);
  boost::json::object cpu;
  cpu["sender"] = median_us(one.sender_cpu);
  cpu["receivers"] = median_us(one.receivers_cpu);
  line["cpu_median_us"] = std::move(cpu);
  boost::json::array each;
  for (auto const& receiver : one.each) {
    boost::json::object part;
    part["held_bytes"] = receiver.held_bytes;
    part["read_bytes"] = receiver.read_bytes;
    part["load_median_s"] = median(receiver.load);
    each.push_back(std::move(part));
  }
  line["each"] = std::move(each);
  return line;
}

void heading(plan const& of, model_memory const& held, std::uint64_t repeats) {
  std::cout << name(of.what) << ", " << of.model;
  if (of.layers != 0) std::cout << " (" << of.layers << " layers)";
  std::cout << ": " << held.entries().size() << " tensors, " << cli::size_text(held.total_bytes()) << ", "
            << to_string(of.where) << " to " << to_string(of.receivers.front()) << ", " << repeats
            << " repeats after " << of.warm_up << "; ring of " << of.slots << " x " << (of.bucket_bytes >> 10)
            << " KiB where there is one\n";
}

void tell(plan const& of, model_memory const& held, std::vector<lane>& lanes, limits& all) {
  heading(of, held, lanes.front().send.size());
  cli::table rows({"what", ">median", ">min", ">max", ">spread", ">payload", ">of the limit", ">CPU, sender",
                   ">receivers"});
  bool const many = lanes.front().send.size() >= 100;
  std::vector<limits::entry*> told;
  auto const row = [&](std::string what, std::vector<double> const& seconds, std::uint64_t bytes) {
    auto const middle = median(seconds), least = std::ranges::min(seconds), most = std::ranges::max(seconds);
    return std::vector<std::string>{std::move(what),
                                    time_text(middle),
                                    time_text(least),
                                    time_text(most),
                                    ratio_text((most - least) / middle),
                                    rate_text(static_cast<double>(bytes), middle)};
  };
  for (auto const& one : lanes) {
    auto line = line_of(of, one, held);
    auto cells = row(one.name + ", " + std::string(ropeway::name(one.taken)), one.send, moved_bytes(one));
    std::string ratio = "-";
    if (auto* const found = all.of(one)) {
      auto own = summary(found->seconds, found->bytes);
      own["is"] = found->copy->what();
      line["limit"] = std::move(own);
      line["ratio_to_limit"] = median(found->seconds) / median(one.send);
      ratio = ratio_text(median(found->seconds) / median(one.send));
      if (std::ranges::find(told, found) == told.end()) told.push_back(found);
    } else {
      line["limit"] = nullptr;
    }
    write_line(of, line);
    cells.push_back(ratio);
    cells.push_back(time_text(median(one.sender_cpu)));
    cells.push_back(time_text(median(one.receivers_cpu)));
    rows.add(std::move(cells));
  }
  for (auto* const one : told) rows.add(row(one->copy->what(), one->seconds, one->bytes));
  rows.print(std::cout);
  for (auto const& one : lanes) {
    std::cout << "  " << one.name << ", " << ropeway::name(one.taken) << ": announced "
              << time_text(median(one.announce)) << ", noticed " << time_text(median(one.notice));
    if (!one.copy.empty()) std::cout << ", last copy " << time_text(median(one.copy));
    std::cout << ", committed " << time_text(median(one.commit)) << ", reported "
              << time_text(median(one.report)) << " later";
    if (!one.why.empty()) std::cout << " (" << one.why << ")";
    std::cout << '\n';
    if (many) {
      auto const times = times_of(one.send);
      std::cout << "    p50 " << time_text(times.p50_s) << ", p90 " << time_text(times.p90_s) << ", p99 "
                << time_text(times.p99_s) << '\n';
    }
    if (one.of.ranks == 0) continue;
    for (std::size_t rank = 0; rank < one.each.size(); ++rank) {
      auto const& part = one.each[rank];
      std::cout << "    rank " << rank << (rank + 1 == one.each.size() && rank > 0 ? " (columns)" : "")
                << ": holds " << part.held_bytes << " of " << held.total_bytes() << " bytes, read "
                << part.read_bytes << ", load " << time_text(median(part.load)) << '\n';
    }
  }
  // Pairs: what many cost beside one.
  if (of.what == study::shards || of.what == study::fan_out)
    for (std::size_t i = 0; i + 1 < lanes.size(); i += 2)
      std::cout << "  " << lanes[i].name << " take "
                << ratio_text(median(lanes[i].send) / median(lanes[i + 1].send))
                << " of the time of one receiver (" << ropeway::name(lanes[i].taken) << ")\n";
  std::cout << std::flush;
}

void progress(std::uint64_t number, bool counts, std::vector<lane> const& lanes) {
  // Short sends are many.
  if (!counts || lanes.front().of.repeats >= 100) return;
  std::cerr << "version " << number << ':';
  for (auto const& one : lanes) std::cerr << ' ' << time_text(one.send.back());
  std::cerr << std::endl;
}

/// What this build can't do is said before anything is started.
void try_options(plan const& of) {
  sender_options sending;
  receiver_options receiving;
  for (auto const route : of.routes) {
    choose(sending, route);
    choose(receiving, route);
  }
  for (auto const& one : of.paces) set_pace(receiving, one);
}

/// The curve of what an update takes from serving, over how fast it may be.
void measure_decode(plan const& of) {
  cli::private_directory const place;
  cli::table rows({"pace", ">update", ">payload", ">step alone, p50", ">p99", ">beside, p50", ">p99",
                   ">p50 ratio", ">p99 ratio", ">steps beside"});
  // The first processes start before this one touches a device.
  auto const one_lane = [&](std::size_t number) {
    plan paced = of;
    paced.paces = {of.paces[number]};
    auto const socket = place.file("bench-" + std::to_string(number) + ".sock");
    return make_lane(paced, "one receiver", of.routes.front(), of.receivers, false, socket);
  };
  std::vector<lane> lanes;
  lanes.push_back(one_lane(0));
  model_memory const held(shapes(of), of.where, of.memory);
  fill(held, 0);
  for (std::size_t number = 0; number < of.paces.size(); ++number) {
    if (number != 0) {
      lanes.clear();
      lanes.push_back(one_lane(number));
    }
    schedule when;
    when.until_enough = true;
    send_all(of, lanes, held, when);
    auto const& one = lanes.front();
    auto const& alone = one.last.alone;
    auto const& beside = one.last.beside;
    if (number == 0) heading(of, held, one.send.size());
    auto line = line_of(of, one, held);
    line.erase("cpu_median_us"); // most of it is serving
    line["decode_reads"] = of.decode_reads;
    line["decode_bytes"] = of.decode_bytes;
    line["step_alone"] = summary(alone);
    line["step_beside"] = summary(beside);
    auto const ratio = [](double a, double b) { return b > 0 ? a / b : 0; };
    line["p50_ratio"] = ratio(beside.p50_s, alone.p50_s);
    line["p99_ratio"] = ratio(beside.p99_s, alone.p99_s);
    write_line(of, line);
    rows.add({to_string(of.paces[number]), time_text(median(one.send)),
              rate_text(static_cast<double>(held.total_bytes()), median(one.send)), time_text(alone.p50_s),
              time_text(alone.p99_s), time_text(beside.p50_s), time_text(beside.p99_s),
              ratio_text(ratio(beside.p50_s, alone.p50_s)), ratio_text(ratio(beside.p99_s, alone.p99_s)),
              std::to_string(beside.steps)});
  }
  rows.print(std::cout);
  std::cout << std::flush;
}

} // namespace

void measure(plan const& of) {
  try_options(of);
  if (of.what == study::decode) return measure_decode(of);
  cli::private_directory const place;
  auto lanes = make_lanes(of, place);
  model_memory const held(shapes(of), of.where, of.memory);
  limits all(of, held);
  std::uint64_t filled = UINT64_MAX;
  schedule when;
  when.before = [&](std::uint64_t number) {
    if (filled != data_of(of, number)) fill(held, filled = data_of(of, number));
  };
  when.after = [&](std::uint64_t number, bool counts) {
    for (auto const& one : lanes) (void)all.of(one);
    all.run(counts);
    progress(number, counts, lanes);
  };
  send_all(of, lanes, held, when);
  tell(of, held, lanes, all);
}

} // namespace ropeway::bench
