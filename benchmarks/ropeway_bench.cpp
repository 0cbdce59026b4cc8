// Times `send_weights` between real processes: through a ring in host memory against two chained memcpys, and
// through a ring in device memory against the driver's own copy. Prints a table and a line of JSON; the
// results that are kept stand in benchmarks/results/. Part of ropeway; Apache-2.0.
#include <CLI/CLI.hpp>
#include <iostream>

#include "bench.hpp"
#include "cli/exit_code.hpp"
#include "cli/quantity.hpp"

int main(int argc, char** argv) {
  using namespace ropeway;
  bench::plan of;
  for (int i = 0; i < argc; ++i) of.command += (i == 0 ? "ropeway-bench" : std::string(" ") + argv[i]);
  std::string mode = "host", where, bucket, check;
  std::vector<std::string> receiver_devices;
  std::uint32_t receivers = 1;
  bool as_receiver = false;
  CLI::App app("Times send_weights between a sender and its receivers, each a process.", "ropeway-bench");
  app.add_option("--mode", mode, "the memory of the ring")
      ->check(CLI::IsMember({"host", "staged"}))
      ->capture_default_str();
  app.add_option("--device", where, "the sender's (default: host, or cuda:0 for staged)");
  auto* const devices =
      app.add_option("--receiver-device", receiver_devices,
                     "a receiver's (default: the sender's); once for all of them, or once for each")
          ->allow_extra_args(false);
  app.add_option("--receivers", receivers, "how many")->check(CLI::Range(1, 63))->capture_default_str();
  app.add_flag(
      "--shards", of.sharded,
      "the receivers are a group and share every matrix (tensor parallelism), instead of taking all");
  app.add_option("--model", of.model,
                 "shapes by name (" + bench::known_models() +
                     ") or of a checkpoint (default: moe-small, or "
                     "qwen3-8b for staged)");
  app.add_option("--bucket", bucket, "bytes of a slot (default: 64M, or 256M for staged)");
  app.add_option("--slots", of.slots, "slots of the ring")->check(CLI::Range(1, 64))->capture_default_str();
  auto* const warm_up =
      app.add_option("--warm-up", of.warm_up, "sends that do not count (default: 1, or 3 for staged)");
  auto* const repeats =
      app.add_option("--repeats", of.repeats, "sends that do (default: 7, or 21 for staged)");
  repeats->check(CLI::Range(1, 1000));
  app.add_option("--layers", of.layers, "of the model, to make it smaller (default: all)");
  app.add_option("--check", check,
                 "new data and a full comparison for each send, or the last (default: each, or last "
                 "for staged)")
      ->check(CLI::IsMember({"each", "last"}));
  auto* const receiver_socket =
      app.add_option("--as-receiver", of.socket, "the second process; used internally");
  app.add_option("--control", of.control, "used internally");
  app.add_option("--rank", of.rank, "used internally");
  try {
    app.parse(argc, argv);
    of.staged = mode == "staged";
    if (where.empty()) where = of.staged ? "cuda:0" : "host";
    if (of.model.empty()) of.model = of.staged ? "qwen3-8b" : "moe-small";
    if (receiver_devices.empty()) receiver_devices.push_back(where);
    if (receiver_devices.size() == 1) receiver_devices.resize(receivers, receiver_devices.front());
    if (devices->count() > 1 && receivers == 1) receivers = static_cast<std::uint32_t>(devices->count());
    if (receiver_devices.size() != receivers)
      throw CLI::ValidationError("--receiver-device stands once, or once for each receiver");
    if (bucket.empty()) bucket = of.staged ? "256M" : "64M";
    if (check.empty()) check = of.staged ? "last" : "each";
    if (warm_up->empty()) of.warm_up = of.staged ? 3 : 1;
    if (repeats->empty()) of.repeats = of.staged ? 21 : 7;
    as_receiver = !receiver_socket->empty();
    auto const from = device::parse(where);
    auto const size = cli::parse_size(bucket);
    for (auto const& one : receiver_devices) {
      auto const to = device::parse(one);
      if (!from || !to) throw CLI::ValidationError("a device is host, cuda or cuda:N");
      of.receivers.push_back(*to);
    }
    if (!size) throw CLI::ValidationError("a bucket is a size such as 64M or 1G");
    of.where = *from;
    of.bucket_bytes = *size;
    of.check_each = check == "each";
  } catch (CLI::ParseError const& error) { return app.exit(error); }
  try {
    if (as_receiver)
      bench::receive(of);
    else
      bench::measure(of);
    return 0;
  } catch (...) {
    auto const failed = cli::judge(std::current_exception());
    std::cerr << "ropeway-bench" << (as_receiver ? " (receiver)" : "") << ": " << failed.line << std::endl;
    return static_cast<int>(failed.code);
  }
}
