// Times `send_weights` between real processes, against plain copies of the same bytes in the same run. Prints
// a table, and a line of JSON for each case; the results that are kept stand in benchmarks/results/. Part of
// ropeway; Apache-2.0.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <optional>

#include "bench.hpp"
#include "cli/exit_code.hpp"
#include "cli/quantity.hpp"
#include "ropeway/error.hpp"

namespace {

using namespace ropeway;

template <class T>
T known(std::optional<T> value, std::string const& words) {
  if (!value) throw CLI::ValidationError(words);
  return *value;
}

struct words {
  std::vector<std::string> routes{"automatic"}, receiver_devices, paces{"unlimited"};
  std::string where, bucket, check, memory, decode_bytes, study = "steady";
  std::uint32_t receivers = 1, shards = 0, fan_out = 0;
  bool adapter = false, decode = false, cold = false, no_limits = false;
  std::string as_trainer, as_receiver;
};

bench::study study_of(words const& said) {
  using bench::study;
  if ((said.shards != 0) + (said.fan_out != 0) + said.decode + said.cold + said.adapter > 1)
    throw CLI::ValidationError("--shards, --fan-out, --decode, --cold and --adapter are for one run each");
  if (said.shards != 0) return study::shards;
  if (said.fan_out != 0) return study::fan_out;
  if (said.decode) return study::decode;
  if (said.cold) return study::cold;
  for (auto const one : {study::steady, study::shards, study::fan_out, study::decode, study::cold})
    if (said.study == bench::name(one)) return one;
  throw CLI::ValidationError("no study " + said.study);
}

void complete(bench::plan& of, words said, CLI::App const& app) {
  using bench::study;
  of.what = study_of(said);
  of.routes.clear();
  for (auto const& one : said.routes) {
    of.routes.push_back(
        known(bench::parse_way(one), "a route is automatic, mapped, staged or host, not " + one));
    if (of.routes.back() == bench::way::staged && said.where.empty()) said.where = "cuda:0";
  }
  of.paces.clear();
  for (auto const& one : said.paces)
    of.paces.push_back(known(bench::parse_pace(one), "a pace is unlimited, blocks:N or rate:N, not " + one));
  if (of.what != study::decode && of.paces.size() > 1)
    throw CLI::ValidationError("more than one --pace is for --decode");
  if (said.where.empty()) said.where = "host";
  of.where = known(device::parse(said.where), "a device is host, cuda or cuda:N");
  auto const devices = said.receiver_devices.size();
  if (said.shards != 0) said.receivers = said.shards;
  if (said.fan_out != 0) said.receivers = said.fan_out;
  if (devices > 1 && said.receivers == 1) said.receivers = static_cast<std::uint32_t>(devices);
  if (devices == 0) said.receiver_devices.push_back(said.where);
  if (said.receiver_devices.size() == 1)
    said.receiver_devices.resize(said.receivers, said.receiver_devices.front());
  if (said.receiver_devices.size() != said.receivers)
    throw CLI::ValidationError("--receiver-device stands once, or once for each receiver");
  if ((of.what == study::decode || of.what == study::cold) && said.receivers != 1)
    throw CLI::ValidationError("--decode and --cold are for one receiver");
  if ((of.what == study::decode || of.what == study::cold) && of.routes.size() != 1)
    throw CLI::ValidationError("--decode and --cold are for one route");
  for (auto const& one : said.receiver_devices)
    of.receivers.push_back(known(device::parse(one), "a device is host, cuda or cuda:N"));

  bool const on_gpu = of.where.is_cuda();
  if (said.adapter) of.model = "adapter";
  if (of.model.empty()) of.model = on_gpu ? "qwen3-8b" : "moe-small";
  if (said.bucket.empty()) said.bucket = on_gpu ? "256M" : "64M";
  of.bucket_bytes = known(cli::parse_size(said.bucket), "a bucket is a size such as 64M or 1G");
  of.decode_bytes = known(cli::parse_size(said.decode_bytes), "--decode-bytes is a size such as 64M");
  bool const mapped_host = !on_gpu && std::ranges::find(of.routes, bench::way::mapped) != of.routes.end();
  if (said.memory.empty()) said.memory = mapped_host ? "shared" : "region";
  of.memory = known(bench::parse_memory_kind(said.memory), "memory is region, segments or shared");
  if (said.check.empty()) said.check = on_gpu || said.adapter ? "last" : "each";
  of.check_each = said.check == "each";
  of.limits = !said.no_limits;
  if (app.get_option("--warm-up")->empty()) of.warm_up = of.what == study::cold ? 1 : 3;
  if (app.get_option("--repeats")->empty())
    of.repeats = of.what == study::cold ? 5 : of.what == study::decode ? 20'000 : said.adapter ? 500 : 21;
  if (of.what == study::decode && of.warm_up == 0)
    throw CLI::ValidationError("--decode needs a --warm-up: what is mapped once is not part of it");
}

} // namespace

int main(int argc, char** argv) {
  double const entered = bench::now();
  bench::plan of;
  for (int i = 0; i < argc; ++i) of.command += (i == 0 ? "ropeway-bench" : std::string(" ") + argv[i]);
  words said;
  said.decode_bytes = "64M";
  CLI::App app("Times send_weights between a sender and its receivers, each a process.", "ropeway-bench");
  app.add_option("--route,--mode", said.routes,
                 "automatic, mapped, staged or host; several, with commas, take turns in one run")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  app.add_option("--device", said.where, "the sender's (default: host, or cuda:0 for staged)");
  app.add_option("--receiver-device", said.receiver_devices,
                 "a receiver's (default: the sender's); once for all of them, or once for each")
      ->allow_extra_args(false);
  app.add_option("--receivers", said.receivers, "how many")->check(CLI::Range(1, 63))->capture_default_str();
  app.add_option("--shards", said.shards,
                 "so many receivers as one group, each with its share of every matrix (the last one: of its "
                 "columns), in turn with one receiver of all")
      ->check(CLI::Range(1, 63));
  app.add_option("--fan-out", said.fan_out, "so many receivers of all, in turn with one")
      ->check(CLI::Range(1, 63));
  app.add_flag("--decode", said.decode,
               "what an update takes from a receiver that serves: steps that read memory, alone and beside "
               "updates, for each --pace");
  app.add_flag("--cold", said.cold,
               "from the start of both processes until a checkpoint, in the page cache, is committed");
  app.add_flag("--adapter", said.adapter, "an adapter of 10 MB, 500 times, with percentiles");
  app.add_option(
         "--pace", said.paces,
         "how much of the device a receiver's copies may take: unlimited, blocks:N, or rate:N in GB/s; "
         "several with --decode")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  app.add_option(
      "--memory", said.memory,
      "of the tensors: region (one piece), segments (a device's, as PyTorch allocates it) or shared "
      "(the host's, that receivers map; default for mapped)");
  app.add_option("--model", of.model,
                 "shapes by name (" + bench::known_models() +
                     ") or of a checkpoint (default: moe-small, or qwen3-8b on a GPU)");
  app.add_option("--layers", of.layers, "of the model, to make it smaller (default: all)");
  app.add_option("--bucket", said.bucket, "bytes of a slot (default: 64M, or 256M on a GPU)");
  app.add_option("--slots", of.slots, "slots of the ring")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--warm-up", of.warm_up, "sends that do not count (default: 3; cold: 1)");
  app.add_option(
         "--repeats", of.repeats,
         "sends that do (default: 21; adapter: 500; cold: 5; decode: as many as it takes, 20000 at most)")
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--check", said.check,
                 "new data and a full comparison for each send, or the last (default: each, or last on a GPU "
                 "and for an adapter)")
      ->check(CLI::IsMember({"each", "last"}));
  app.add_flag("--digest", of.digest,
               "both sides compute digests of all tensors, compared before each commit");
  app.add_flag("--prepared", of.prepared, "send prepared tensors");
  app.add_flag("--no-limits", said.no_limits, "without the plain copies, which take memory of their own");
  app.add_option("--decode-steps", of.decode_steps, "steps alone, and beside updates")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--decode-reads", of.decode_reads, "reads of a step")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--decode-bytes", said.decode_bytes, "bytes of each read, a multiple of 16")
      ->capture_default_str();
  app.add_option("--json", of.json, "adds the lines of JSON to this file instead of printing them");
  app.add_option("--as-receiver", said.as_receiver, "a second process; used internally");
  app.add_option("--as-trainer", said.as_trainer, "used internally");
  app.add_option("--control", of.control, "used internally");
  app.add_option("--rank", of.rank, "used internally");
  app.add_option("--ranks", of.ranks, "used internally");
  app.add_option("--study", said.study, "used internally");
  try {
    app.parse(argc, argv);
    of.socket = said.as_receiver.empty() ? said.as_trainer : said.as_receiver;
    complete(of, said, app);
  } catch (CLI::ParseError const& error) { return app.exit(error); }
  try {
    if (!said.as_receiver.empty())
      bench::receive(of, entered);
    else if (!said.as_trainer.empty())
      bench::train_once(of, entered);
    else if (of.what == bench::study::cold)
      bench::measure_cold(of);
    else
      bench::measure(of);
    return 0;
  } catch (...) {
    auto const failed = cli::judge(std::current_exception());
    std::cerr << "ropeway-bench"
              << (!said.as_receiver.empty()  ? " (receiver)"
                  : !said.as_trainer.empty() ? " (trainer)"
                                             : "")
              << ": " << failed.line << std::endl;
    return static_cast<int>(failed.code);
  }
}
