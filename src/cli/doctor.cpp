#include <sys/utsname.h>

#include <boost/json/array.hpp>
#include <exception>
#include <iostream>

#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/findings.hpp"
#include "cli/quantity.hpp"
#include "cli/report_json.hpp"
#include "cli/trial.hpp"
#include "memory/memory.hpp"

namespace ropeway::cli {
namespace {

using level = finding::level;

/// Every device, and how the host and every other one reach it.
void look_at_devices(std::vector<finding>& all, std::vector<memory::device_uuid> const& devices,
                     memory::backends& memory) {
  if (devices.empty()) {
    std::string why = "none";
    try {
      (void)memory.get(device::cuda(0));
    } catch (transfer_error const& error) { why = own_words(error); }
    all.push_back({level::hint, "CUDA", why, "weights in host memory need nothing of it"});
  }
  for (std::size_t i = 0; i < devices.size(); ++i) {
    auto const here = device::cuda(static_cast<int>(i));
    finding one{level::good, to_string(here), memory::to_string(devices[i]), {}};
    try {
      auto const backend = memory.get(here);
      for (std::size_t other = 0; other < devices.size(); ++other)
        if (other != i && !backend->can_reach(devices[other])) {
          one.how = level::hint;
          one.said += "; no peer access to cuda:" + std::to_string(other);
          one.advice = "between the two, weights go through host memory";
        }
    } catch (std::exception const& error) {
      one = {level::bad, to_string(here), error.what(), "check nvidia-smi, and what else uses the device"};
    }
    all.push_back(std::move(one));
  }
}

/// A small transfer between two processes, for each two places that there are.
void try_ways(std::vector<finding>& all, std::vector<device> const& places) {
  for (auto const from : places)
    for (auto const to : places) {
      trial what;
      what.from = from;
      what.to = to;
      what.bytes = std::uint64_t(16) << 20;
      what.bucket_bytes = std::uint64_t(8) << 20;
      auto const result = try_out(what);
      finding one{level::good, to_string(from) + " to " + to_string(to), {}, {}};
      if (!result.worked()) {
        one.how = level::bad;
        one.said = result.error;
        one.advice = "a transfer of 16 MiB between two processes did not work";
      } else {
        one.said = std::string(name(result.way)) + " route" +
                   (result.why.empty() ? std::string() : " (" + result.why + ")");
      }
      all.push_back(std::move(one));
    }
}

void print(std::ostream& out, std::vector<finding> const& all) {
  for (auto const& one : all) {
    std::string mark(name(one.how));
    mark.resize(4, ' ');
    out << mark << "  " << one.about << ": " << printable(one.said) << '\n';
    if (!one.advice.empty()) out << "      " << printable(one.advice) << '\n';
  }
}

boost::json::object to_json(std::vector<finding> const& all) {
  boost::json::array list;
  for (auto const& one : all) {
    boost::json::object entry;
    entry["level"] = name(one.how);
    entry["about"] = json_text(one.about);
    entry["said"] = json_text(one.said);
    entry["advice"] = json_text(one.advice);
    list.push_back(std::move(entry));
  }
  boost::json::object out;
  out["command"] = "doctor";
  out["findings"] = std::move(list);
  return out;
}

} // namespace

int doctor(doctor_arguments const& arguments) {
  std::vector<finding> all;
  auto const run = [&] {
    auto const memory = memory::system_backends();
    auto const devices = memory->cuda_devices();
    utsname kernel{};
    ::uname(&kernel);
    all.push_back({level::good, "ropeway", arguments.version + ", Linux " + kernel.release, {}});
    for (auto& one : look_around(arguments.socket, !devices.empty(), arguments.has_io_uring))
      all.push_back(std::move(one));
    std::vector<device> places{device::host()};
    for (std::size_t i = 0; i < devices.size(); ++i) places.push_back(device::cuda(static_cast<int>(i)));
    // Before this process touches a device: the trials' receivers are started from it.
    if (arguments.with_trials) try_ways(all, places);
    look_at_devices(all, devices, *memory);
    return 0;
  };
  ending end = carry_out(run);
  for (auto const& one : all)
    if (one.how == level::bad && end.status == 0)
      end = {static_cast<int>(exit_code::system), "something here keeps ropeway from its work (see bad)"};
  if (arguments.json)
    print_report(std::cout, to_json(all), end.status, end.error);
  else
    print(std::cout, all);
  std::cout.flush();
  return say(end);
}

} // namespace ropeway::cli
