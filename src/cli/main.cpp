// The `ropeway` program: command line in, exit status out. Part of ropeway; Apache-2.0.
#include <CLI/CLI.hpp>
#include <csignal>
#include <iostream>

#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/quantity.hpp"

namespace ropeway::cli {
namespace {

constexpr char send_examples[] = "Examples:\n"
                                 "  ropeway send model.safetensors --socket ~/weights/s --receivers 2\n"
                                 "  ropeway send model/ --socket ~/weights/s --device cuda:0 --bucket 256M\n"
                                 "  ropeway send model/ --socket ~/weights/s --check --hold";
constexpr char receive_examples[] =
    "Examples:\n"
    "  ropeway receive --socket ~/weights/s --device cuda:0\n"
    "  ropeway receive --socket ~/weights/s --versions 1 --out copy.safetensors";
constexpr char watch_examples[] = "Examples:\n"
                                  "  ropeway watch --socket ~/weights/s\n"
                                  "  ropeway watch --socket ~/weights/s --once --json";
constexpr char verify_examples[] = "Examples:\n"
                                   "  ropeway verify --socket ~/weights/s\n"
                                   "  ropeway verify model.safetensors copy.safetensors\n"
                                   "  ropeway verify model/ --socket ~/weights/s --json";
constexpr char inspect_examples[] = "Examples:\n"
                                    "  ropeway inspect model.safetensors\n"
                                    "  ropeway inspect model/ --json";
constexpr char doctor_examples[] = "Examples:\n"
                                   "  ropeway doctor --socket ~/weights/s\n"
                                   "  ropeway doctor --no-trials --json";
constexpr char bench_examples[] = "Examples:\n"
                                  "  ropeway bench\n"
                                  "  ropeway bench --size 4G --bucket 256M --repeats 9";
constexpr char examples[] = "Examples, the first two in two terminals:\n"
                            "  ropeway send model.safetensors --socket ~/weights/s --check --hold\n"
                            "  ropeway receive --socket ~/weights/s --versions 1 --out copy.safetensors\n"
                            "  ropeway watch --socket ~/weights/s\n"
                            "  ropeway doctor --socket ~/weights/s";
constexpr char statuses[] = "Exit status: 0 done, 2 usage, 3 peer (missing, refused, died), 4 data "
                            "(checkpoint, tensors, or what differs),\n"
                            "5 system, 130 after Ctrl-C (watch: 0), 143 after a request to terminate.";

/// What stands below the options of a command.
std::string footer(char const* shown) { return std::string(shown) + "\n\n" + statuses; }

/// What the command line said, before it is understood.
struct words {
  send_arguments send;
  receive_arguments receive;
  inspect_arguments inspect;
  watch_arguments watch;
  verify_arguments verify;
  doctor_arguments doctor;
  bench_arguments bench;
  std::string device = "host", route = "automatic", bucket = "64M", wait = "60", connect_limit = "10";
  std::string bench_bucket = "64M", bench_size = "1G", interval = "1", watch_limit = "10";
  std::string verify_limit = "10";
};

CLI::Validator word(char const* kind, std::function<bool(std::string const&)> good, std::string expected) {
  return CLI::Validator(
      [good = std::move(good), expected = std::move(expected)](std::string const& text) {
        return good(text) ? std::string() : "'" + printable(text) + "' is not " + expected;
      },
      kind);
}

void add_common(CLI::App& command, common_arguments& into, words& said) {
  command
      .add_option("--socket", into.socket, "where the sender listens; its directory must be private (0700)")
      ->required()
      ->type_name("PATH");
  command.add_option("--device", said.device, "where the weights lie")
      ->capture_default_str()
      ->check(word(
          "host|cuda:N", [](auto& text) { return device::parse(text).has_value(); }, "host, cuda or cuda:N"));
  command.add_flag("--json", into.json,
                   "print the report as one line of JSON, and nothing else, on standard output");
  command.add_flag("--quiet", into.quiet, "no progress on standard error");
  auto const ways = word(
      "automatic|mapped|staged|host", [](auto& text) { return parse_route_choice(text).has_value(); },
      "automatic, mapped, staged or host");
  command
      .add_option("--route", said.route,
                  "the way that versions may take; mapped puts host weights where receivers can map them")
      ->capture_default_str()
      ->check(ways);
  command.add_flag("--digest,!--no-digest", into.with_digest,
                   "a digest of each version in the report (default: yes)");
  command.add_flag(
      "--check", into.check,
      "versions carry digests, and receivers compare before they commit; a receiver with this takes "
      "no others");
  command
      .add_option("--trace", into.trace,
                  "add a timeline to this file, for ui.perfetto.dev; both sides may name the same one")
      ->type_name("FILE.json");
}

void add_send(CLI::App& app, words& said) {
  auto& command = *app.add_subcommand("send", "Send a checkpoint to the receivers on this host");
  auto const size = word(
      "SIZE", [](auto& text) { return parse_size(text).has_value(); }, "a size such as 64M or 1G");
  auto const time = word(
      "SECONDS", [](auto& text) { return parse_seconds(text).has_value(); }, "a time in seconds");
  command
      .add_option("checkpoint", said.send.checkpoint,
                  "a .safetensors file, an index, or a directory with either")
      ->required();
  add_common(command, said.send, said);
  command
      .add_option("--versions", said.send.versions,
                  "so many versions: the first as it is, then ones that differ "
                  "in every element (for trying things out)")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t(1), std::uint64_t(1) << 53));
  command.add_option("--bucket", said.bucket, "bytes of a slot of the ring")
      ->capture_default_str()
      ->check(size);
  command.add_option("--slots", said.send.slots, "slots of the ring")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  command.add_option("--receivers", said.send.receivers, "wait for so many; each version must reach as many")
      ->capture_default_str()
      ->check(CLI::Range(1, 63));
  command.footer(footer(send_examples));
  command.add_option("--wait", said.wait, "for so long at most")->capture_default_str()->check(time);
  command.add_flag("--hold", said.send.hold,
                   "when all is sent, hold the last version until Ctrl-C: who comes later is given it, and "
                   "watch and verify find it");
}

void add_receive(CLI::App& app, words& said) {
  auto& command = *app.add_subcommand("receive", "Receive weights into this process's memory, and a file");
  auto const time = word(
      "SECONDS", [](auto& text) { return parse_seconds(text).has_value(); }, "a time in seconds");
  command.footer(footer(receive_examples));
  add_common(command, said.receive, said);
  command.add_option("--out", said.receive.out, "write the last version here")->type_name("FILE.safetensors");
  command
      .add_option("--versions", said.receive.versions, "end after so many (default: when the sender ends)")
      ->check(CLI::Range(std::uint64_t(1), std::uint64_t(1) << 53));
  command.add_option("--name", said.receive.name, "how the sender's report calls this receiver")
      ->capture_default_str();
  command.add_option("--connect-limit", said.connect_limit, "how long to wait for the sender to appear")
      ->capture_default_str()
      ->check(time);
}

void add_inspect(CLI::App& app, words& said) {
  auto& command = *app.add_subcommand("inspect", "Show what a checkpoint holds");
  command.footer(footer(inspect_examples));
  command
      .add_option("checkpoint", said.inspect.path,
                  "a .safetensors file, an index, or a directory with either")
      ->required();
  command.add_flag("--json", said.inspect.json, "as one line of JSON");
}

void add_watch(CLI::App& app, words& said) {
  auto& command = *app.add_subcommand("watch", "Show a sender and its receivers, again and again");
  auto const time = word(
      "SECONDS", [](auto& text) { return parse_seconds(text).has_value(); }, "a time in seconds");
  command.footer(footer(watch_examples));
  command.add_option("--socket", said.watch.socket, "where the sender listens")
      ->required()
      ->type_name("PATH");
  command.add_option("--interval", said.interval, "between two looks")->capture_default_str()->check(time);
  command.add_flag("--once", said.watch.once, "look once, and end");
  command.add_option("--connect-limit", said.watch_limit, "how long to wait for the sender to appear")
      ->capture_default_str()
      ->check(time);
  command.add_flag("--json", said.watch.json,
                   "each look as one line of JSON, and one with sender null when it is gone");
}

void add_verify(CLI::App& app, words& said) {
  auto& command =
      *app.add_subcommand("verify", "Compare checkpoints, a sender and its receivers by their digests");
  auto const time = word(
      "SECONDS", [](auto& text) { return parse_seconds(text).has_value(); }, "a time in seconds");
  command.footer(footer(verify_examples));
  command.add_option("checkpoints", said.verify.checkpoints,
                     "each a .safetensors file, an index, or a directory with either");
  command
      .add_option("--socket", said.verify.socket,
                  "where a sender listens that sends with digests (send --check)")
      ->type_name("PATH");
  command.add_option("--connect-limit", said.verify_limit, "how long to wait for the sender to appear")
      ->capture_default_str()
      ->check(time);
  command.add_flag("--json", said.verify.json, "as one line of JSON");
}

void add_doctor(CLI::App& app, words& said) {
  auto& command = *app.add_subcommand("doctor", "Look for what keeps weights from going fast, or at all");
  command.footer(footer(doctor_examples));
  command.add_option("--socket", said.doctor.socket, "also whether this path would do")->type_name("PATH");
  command.add_flag("--trials,!--no-trials", said.doctor.with_trials,
                   "send 16 MiB each way between two processes (default: yes)");
  command.add_flag("--json", said.doctor.json, "as one line of JSON");
}

void add_bench(CLI::App& app, words& said) {
  auto& command =
      *app.add_subcommand("bench", "Time every route that works between each two places for weights");
  auto const size = word(
      "SIZE", [](auto& text) { return parse_size(text).has_value(); }, "a size such as 64M or 1G");
  command.footer(footer(bench_examples));
  command.add_option("--size", said.bench_size, "of the weights")->capture_default_str()->check(size);
  command
      .add_option("--bucket", said.bench_bucket,
                  "bytes of a slot of the ring, for the routes that have one: staged and host")
      ->capture_default_str()
      ->check(size);
  command.add_option("--slots", said.bench.slots, "slots of the ring")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  command.add_option("--repeats", said.bench.repeats, "sends that count, after one that does not")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  command.add_flag("--json", said.bench.json, "as one line of JSON");
}

int run(CLI::App& app, words& said) {
  auto const where = *device::parse(said.device);
  said.send.where = said.receive.where = where;
  said.send.route = said.receive.route = *parse_route_choice(said.route);
  said.send.bucket_bytes = *parse_size(said.bucket);
  said.send.wait = *parse_seconds(said.wait);
  said.receive.connect_limit = *parse_seconds(said.connect_limit);
  if (app.got_subcommand("send")) return send(said.send);
  said.bench.bytes = *parse_size(said.bench_size);
  said.bench.bucket_bytes = *parse_size(said.bench_bucket);
  said.doctor.version = ROPEWAY_VERSION;
  said.doctor.has_io_uring = ROPEWAY_HAS_IO_URING;
  if (app.got_subcommand("receive")) return receive(said.receive);
  said.watch.interval = *parse_seconds(said.interval);
  said.watch.connect_limit = *parse_seconds(said.watch_limit);
  if (app.got_subcommand("watch")) return watch(said.watch);
  said.verify.connect_limit = *parse_seconds(said.verify_limit);
  if (app.got_subcommand("verify")) return verify(said.verify);
  if (app.got_subcommand("doctor")) return doctor(said.doctor);
  if (app.got_subcommand("bench")) return bench(said.bench);
  return inspect(said.inspect);
}

} // namespace
} // namespace ropeway::cli

int main(int argc, char** argv) {
  using namespace ropeway::cli;
  // Whoever reads our output may leave; that must not keep us from cleaning up.
  std::signal(SIGPIPE, SIG_IGN);
  CLI::App app("Carries model weights from a trainer to inference servers on the same host.", "ropeway");
  app.footer(footer(examples));
  app.require_subcommand(1);
  app.set_version_flag("--version", ROPEWAY_VERSION);
  words said;
  add_send(app, said);
  add_receive(app, said);
  add_inspect(app, said);
  add_watch(app, said);
  add_verify(app, said);
  add_doctor(app, said);
  add_bench(app, said);
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    bool const no_command = argc > 1 && argv[1][0] != '-' && app.get_subcommands().empty();
    std::string const what = no_command ? "there is no command " + std::string(argv[1]) : error.what();
    std::cerr << "ropeway: " << printable(what) << " (ropeway --help says more)" << std::endl;
    return static_cast<int>(exit_code::usage);
  }
  return run(app, said);
}
