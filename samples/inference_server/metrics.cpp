#include "metrics.hpp"

#include <algorithm>
#include <cstdio>

namespace {

std::string number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.9g", value);
  return text.data();
}

void head(std::string& into, std::string_view name, std::string_view type, std::string_view help) {
  into.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ").append(name).append(" ");
  into.append(type).append("\n");
}

void line(std::string& into, std::string_view name, std::string_view labels, std::string const& value) {
  into.append(name);
  if (!labels.empty()) into.append("{").append(labels).append("}");
  into.append(" ").append(value).append("\n");
}

double seconds(std::chrono::nanoseconds took) { return std::chrono::duration<double>(took).count(); }

} // namespace

void histogram::add(std::chrono::nanoseconds took) {
  auto const value = seconds(took);
  auto const bound = std::lower_bound(bounds.begin(), bounds.end(), value);
  ++counts_[static_cast<std::size_t>(bound - bounds.begin())];
  ++count_;
  seconds_ += value;
}

void histogram::write(std::string& into, std::string_view name, std::string_view labels) const {
  std::string const base(name), with = labels.empty() ? "" : std::string(labels) + ",";
  std::uint64_t below = 0;
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    below += counts_[i];
    line(into, base + "_bucket", with + "le=\"" + number(bounds[i]) + "\"", std::to_string(below));
  }
  line(into, base + "_bucket", with + "le=\"+Inf\"", std::to_string(count_));
  line(into, base + "_sum", labels, number(seconds_));
  line(into, base + "_count", labels, std::to_string(count_));
}

void metrics::request(std::string_view endpoint, unsigned status, std::chrono::nanoseconds took) {
  ++requests_[{std::string(endpoint), status}];
  latencies_[std::string(endpoint)].add(took);
}

void metrics::swap(ropeway::load_report const& loaded) {
  ++swaps_;
  swap_seconds_.add(loaded.total);
  last_swap_ = seconds(loaded.total);
  for (auto const stage : ropeway::all_stages) stages_[stage] += loaded.stages[stage];
  bytes_ += loaded.copied;
  ++routes_[std::string(name(loaded.way))];
}

std::string metrics::text(moment const& now) const {
  std::string out;
  head(out, "ropeway_requests_total", "counter", "HTTP requests by endpoint and status.");
  for (auto const& [which, count] : requests_)
    line(out, "ropeway_requests_total",
         "endpoint=\"" + which.first + "\",status=\"" + std::to_string(which.second) + "\"",
         std::to_string(count));
  head(out, "ropeway_request_seconds", "histogram", "From a whole request until its answer was ready.");
  for (auto const& [endpoint, taken] : latencies_)
    taken.write(out, "ropeway_request_seconds", "endpoint=\"" + endpoint + "\"");
  head(out, "ropeway_updates_total", "counter", "Updates that were offered, by what came of them.");
  for (auto const& [outcome, count] : updates_)
    line(out, "ropeway_updates_total", "outcome=\"" + outcome + "\"", std::to_string(count));
  head(out, "ropeway_swaps_total", "counter", "Versions that went live.");
  line(out, "ropeway_swaps_total", "", std::to_string(swaps_));
  head(out, "ropeway_swap_seconds", "histogram", "From the acceptance of an update until it was live.");
  swap_seconds_.write(out, "ropeway_swap_seconds", "");
  head(out, "ropeway_last_swap_seconds", "gauge", "The same, of the last one.");
  line(out, "ropeway_last_swap_seconds", "", number(last_swap_));
  head(out, "ropeway_swap_stage_seconds_total", "counter", "What the time of all swaps went into.");
  for (auto const stage : ropeway::all_stages)
    if (stages_[stage].count() != 0)
      line(out, "ropeway_swap_stage_seconds_total", "stage=\"" + std::string(name(stage)) + "\"",
           number(seconds(stages_[stage])));
  head(out, "ropeway_swap_bytes_total", "counter", "Bytes of weights that were copied.");
  line(out, "ropeway_swap_bytes_total", "", std::to_string(bytes_));
  head(out, "ropeway_swap_routes_total", "counter", "Versions that went live, by how their bytes came.");
  for (auto const& [way, count] : routes_)
    line(out, "ropeway_swap_routes_total", "route=\"" + way + "\"", std::to_string(count));
  if (now.version) {
    head(out, "ropeway_version", "gauge", "The version that is served; missing while none is.");
    line(out, "ropeway_version", "", std::to_string(*now.version));
  }
  head(out, "ropeway_session_phase", "gauge", "1 for the phase that the session with the trainer is in.");
  for (std::string_view const phase : {"closed", "connecting", "idle", "offered", "loading", "committing"})
    line(out, "ropeway_session_phase", "phase=\"" + std::string(phase) + "\"",
         phase == now.phase ? "1" : "0");
  auto const gauge = [&](std::string_view name, std::string_view help, std::size_t value) {
    head(out, name, "gauge", help);
    line(out, name, "", std::to_string(value));
  };
  gauge("ropeway_connections", "HTTP connections.", now.connections);
  gauge("ropeway_inference_running", "Requests that are being computed.", now.running);
  gauge("ropeway_inference_waiting", "Requests that wait for a worker, or for /resume.", now.waiting);
  gauge("ropeway_paused", "Whether inference is paused.", now.paused ? 1 : 0);
  gauge("ropeway_asleep", "Whether the weights are put away.", now.asleep ? 1 : 0);
  return out;
}
