// Runs updates for as long as is wanted, with everything going wrong that may, and checks every byte.
//   ropeway-soak --updates 3000                   a random soak; --seed N repeats one
//   ropeway-soak --minutes 15
//   ropeway-soak --flat --updates 1000            the same few layouts; nothing may grow
//   ropeway-soak --restarts 200 [--victim ...]    kills a receiver and the sender in turn; nothing may grow
// What it does and checks: docs/reliability.md. Part of ropeway; Apache-2.0.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>

#include "roles.hpp"
#include "sample.hpp"
#include "support/sanitized.hpp"

namespace {

using namespace ropeway;
using namespace ropeway::soak;

constexpr char usage[] =
    "usage: ropeway-soak [--updates N] [--minutes M] [--seed N] [--flat | --restarts N]\n"
    "         [--victim receiver|sender|both]   whom --restarts kills (default: both, in turn)\n"
    "         [--device host|cuda:N]            where the sender's tensors lie\n"
    "         [--receiver-device host|cuda:N]   once for all receivers, or several times, in turn\n"
    "         [--sample FILE.csv] [--every N]   what the processes hold, every N-th update or round\n"
    "         [--short]                         a random soak that fits into a test\n"
    "         [--verbose]\n";

std::uint64_t number(std::string const& text) {
  std::size_t used = 0;
  auto const value = std::stoull(text, &used);
  if (used != text.size()) throw std::invalid_argument(text);
  return value;
}
device device_of(std::string const& text) {
  auto const where = device::parse(text);
  if (!where) throw std::invalid_argument(text);
  return *where;
}

struct command_line {
  wishes wanted;
  role as;
  std::string kind;
};

command_line read_command_line(int argc, char** argv) {
  command_line out;
  bool seeded = false;
  out.wanted.command = "ropeway-soak";
  for (int i = 1; i < argc; ++i) {
    std::string const word = argv[i];
    out.wanted.command += " " + word;
    auto const value = [&]() -> std::string {
      if (i + 1 == argc) throw std::invalid_argument(word);
      out.wanted.command += std::string(" ") + argv[i + 1];
      return argv[++i];
    };
    if (word == "--updates") {
      out.wanted.updates = number(value());
    } else if (word == "--minutes") {
      out.wanted.minutes = std::stod(value());
    } else if (word == "--seed") {
      out.wanted.seed = out.as.seed = number(value());
      seeded = true;
    } else if (word == "--flat") {
      out.wanted.how = mode::flat;
    } else if (word == "--restarts") {
      out.wanted.how = mode::restarts;
      out.wanted.updates = number(value());
    } else if (word == "--victim") {
      auto const who = value();
      if (who != "receiver" && who != "sender" && who != "both") throw std::invalid_argument(who);
      out.wanted.killed = who == "both" ? victim::both : who == "sender" ? victim::sender : victim::receiver;
    } else if (word == "--device") {
      out.wanted.where = out.as.where = device_of(value());
    } else if (word == "--receiver-device") {
      out.wanted.receiver_devices.push_back(device_of(value()));
    } else if (word == "--sample") {
      out.wanted.sample_file = value();
    } else if (word == "--every") {
      out.wanted.sample_every = number(value());
    } else if (word == "--short") {
      out.wanted.updates = testing::sanitized ? 60 : 150;
    } else if (word == "--verbose") {
      out.wanted.verbose = true;
    } else if (word == "--as") {
      out.kind = value();
    } else if (word == "--path") {
      out.as.path = value();
    } else if (word == "--name") {
      out.as.name = value();
    } else if (word == "--group") {
      out.as.group = value();
    } else if (word == "--group-size") {
      out.as.group_size = static_cast<std::uint32_t>(number(value()));
    } else if (word == "--even") {
      out.as.even = true;
    } else {
      throw std::invalid_argument(word);
    }
  }
  if (!seeded) out.wanted.seed = std::random_device()();
  if (out.wanted.updates == 0 && out.wanted.minutes <= 0) out.wanted.updates = 1000;
  return out;
}

} // namespace

int main(int argc, char** argv) {
  command_line said;
  try {
    said = read_command_line(argc, argv);
  } catch (std::exception const& error) {
    std::fprintf(stderr, "ropeway-soak: what is '%s'?\n%s", error.what(), usage);
    return 2;
  }
  if (said.kind == "sender") return lead(said.as);
  if (said.kind == "receiver") return follow(said.as);
  return conduct(said.wanted);
}
