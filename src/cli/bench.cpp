#include <algorithm>
#include <boost/json/array.hpp>
#include <chrono>
#include <cstring>
#include <exception>
#include <iostream>

#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/mapping.hpp"
#include "cli/progress.hpp"
#include "cli/quantity.hpp"
#include "cli/report_json.hpp"
#include "cli/table.hpp"
#include "cli/trial.hpp"
#include "memory/host/available.hpp"
#include "memory/memory.hpp"

namespace ropeway::cli {
namespace {

struct measured {
  device from, to;
  route_choice asked; ///< automatic: the one that is taken if nobody asks
  trial_result result;

  std::string way() const {
    if (result.worked()) return std::string(name(result.way));
    return asked == route_choice::automatic ? "none" : "no " + std::string(name(asked));
  }
};

/// What one thread does with one copy of the bytes.
nanoseconds one_memcpy(std::uint64_t bytes, std::uint32_t repeats, progress& shown) {
  shown.bar("memcpy", 0, bytes * repeats);
  mapping const from(bytes), to(bytes);
  std::memset(from.data(), 1, bytes);
  std::memset(to.data(), 2, bytes);
  trial_result all;
  for (std::uint32_t i = 0; i < repeats; ++i) {
    auto const start = std::chrono::steady_clock::now();
    std::memcpy(to.data(), from.data(), bytes);
    all.times.push_back(std::chrono::steady_clock::now() - start);
    shown.bar("memcpy", bytes * (i + 1), bytes * repeats);
  }
  return all.median();
}

std::vector<device> places(std::vector<memory::device_uuid> const& devices) {
  std::vector<device> all{device::host()};
  for (std::size_t i = 0; i < devices.size(); ++i) all.push_back(device::cuda(static_cast<int>(i)));
  return all;
}

std::string remark(trial_result const& of) {
  if (!of.worked()) return printable(of.error);
  return printable(of.why);
}

void print_table(std::ostream& out, bench_arguments const& arguments, std::vector<measured> const& all,
                 nanoseconds copy) {
  out << size_text(arguments.bytes) << " in 16 tensors, ring of " << arguments.slots << " x "
      << (arguments.bucket_bytes >> 10) << " KiB, median of " << arguments.repeats << "\n";
  table rows({"from", "to", "route", ">time", ">rate", "remark"});
  for (auto const& one : all) {
    bool const worked = one.result.worked();
    auto const time = one.result.median();
    rows.add({to_string(one.from), to_string(one.to), one.way(), worked ? time_text(time) : "-",
              worked ? rate_text(arguments.bytes, time) : "-", remark(one.result)});
  }
  rows.add({"host", "host", "memcpy", time_text(copy), rate_text(arguments.bytes, copy),
            "one thread, one copy, as mapped makes; staged and host make two"});
  rows.print(out);
}

boost::json::object to_json(bench_arguments const& arguments, std::vector<measured> const& all,
                            nanoseconds copy) {
  auto const seconds = [](nanoseconds time) { return std::chrono::duration<double>(time).count(); };
  boost::json::array cases;
  for (auto const& one : all) {
    boost::json::object entry;
    entry["from"] = to_string(one.from);
    entry["to"] = to_string(one.to);
    entry["asked"] = name(one.asked);
    if (one.result.worked()) {
      entry["route"] = name(one.result.way);
      entry["median_seconds"] = seconds(one.result.median());
      entry["bytes_per_second"] = static_cast<double>(arguments.bytes) / seconds(one.result.median());
    } else {
      entry["route"] = nullptr;
    }
    entry["remark"] = json_text(remark(one.result));
    cases.push_back(std::move(entry));
  }
  boost::json::object out;
  out["command"] = "bench";
  out["bytes"] = arguments.bytes;
  out["bucket_bytes"] = arguments.bucket_bytes;
  out["slots"] = arguments.slots;
  out["repeats"] = arguments.repeats;
  out["cases"] = std::move(cases);
  out["memcpy_seconds"] = seconds(copy);
  return out;
}

/// Weights on both sides, and the ring; memory that is touched without being there is somebody's process.
void check_memory(bench_arguments const& arguments) {
  auto const available = memory::host::available_memory();
  if (arguments.bytes <= available / 2 &&
      arguments.bucket_bytes <= (available - 2 * arguments.bytes) / arguments.slots)
    return;
  throw transfer_error(errc::out_of_memory, "twice " + size_text(arguments.bytes) + " and a ring of " +
                                                std::to_string(arguments.slots) + " x " +
                                                size_text(arguments.bucket_bytes) +
                                                " of host memory: " + size_text(available) +
                                                " are available; use a smaller --size");
}

/// Times all routes from one place to another: the one that is taken unasked, and the slower ones that are
/// there beside it.
void time_all(bench_arguments const& arguments, device from, device to, progress& shown,
              std::vector<measured>& all) {
  auto const time = [&](route_choice asked, bool shared = false) {
    auto const way = asked == route_choice::automatic ? "" : ", " + std::string(name(asked));
    auto const title = to_string(from) + " to " + to_string(to) + way;
    auto const bytes_of_all = arguments.bytes * (arguments.repeats + std::uint64_t(1));
    auto const show = [&](std::uint64_t done) { shown.bar(title, done * arguments.bytes, bytes_of_all); };
    show(0);
    trial what;
    what.from = from;
    what.to = to;
    what.bytes = arguments.bytes;
    what.bucket_bytes = arguments.bucket_bytes;
    what.slots = arguments.slots;
    what.repeats = arguments.repeats;
    what.route = asked;
    what.shared = shared;
    what.sent = show;
    return try_out(what);
  };
  all.push_back({from, to, route_choice::automatic, time(route_choice::automatic)});
  bool const worked = all.back().result.worked();
  auto const fastest = all.back().result.way;
  if (worked && from.is_cuda() && fastest == route::mapped)
    // Where the ring can't be mapped, although the tensors can, this is the host route.
    if (auto staged = time(route_choice::staged); !staged.worked() || staged.way == route::staged)
      all.push_back({from, to, route_choice::staged, std::move(staged)});
  if (worked && from.is_cuda() && fastest != route::host)
    all.push_back({from, to, route_choice::host, time(route_choice::host)});
  if (worked && !from.is_cuda() && !to.is_cuda()) {
    all.push_back({from, to, route_choice::mapped, time(route_choice::mapped, true)});
    all.back().result.why = "the tensors are host memory that is shared";
  }
}

} // namespace

int bench(bench_arguments const& arguments) {
  std::vector<measured> all;
  nanoseconds copy{};
  auto const run = [&] {
    check_memory(arguments);
    auto const where = places(memory::system_backends()->cuda_devices());
    progress shown(false);
    for (auto const from : where)
      for (auto const to : where) time_all(arguments, from, to, shown, all);
    copy = one_memcpy(arguments.bytes, arguments.repeats, shown);
    return 0;
  };
  ending end = carry_out(run);
  for (auto const& one : all)
    if (!one.result.worked() && end.status == 0)
      end = {static_cast<int>(exit_code::system),
             to_string(one.from) + " to " + to_string(one.to) + " did not work (ropeway doctor says more)"};
  if (arguments.json)
    print_report(std::cout, to_json(arguments, all, copy), end.status, end.error);
  else if (!all.empty())
    print_table(std::cout, arguments, all, copy);
  std::cout.flush();
  return say(end);
}

} // namespace ropeway::cli
