// What the processes held, and what the soak did. Part of ropeway; Apache-2.0.
#include <cmath>
#include <fstream>

#include "conductor.hpp"
#include "support/sanitized.hpp"

namespace ropeway::soak {
namespace {

constexpr std::size_t rows_kept = 200;
/// What may differ between two samples of a process that holds the same: a message that is still on its way,
/// words that are a little longer. A leak of 20 bytes an update shows after 1,000.
constexpr std::uint64_t heap_slack = 16 * 1024;
/// Pages that were touched once stay, and which of them an update touches is a matter of its layout.
constexpr std::uint64_t anon_slack_kib = 512;
constexpr std::uint64_t shared_slack_kib = 64;
/// The allocator may take one for itself when threads meet in it; a leak takes one an update.
constexpr std::uint64_t mapping_slack = 2;
/// The driver tells it for all processes together.
constexpr std::uint64_t device_slack_mib = 16;

} // namespace

figures conductor::sample_of(child& who) {
  who.sampled = false;
  order_only(who, verb::sample);
  until([&] { return who.sampled; }, "a sample");
  return who.sample.sample;
}

void conductor::add_row(child& who, std::uint64_t step, std::string const& as, figures const& of) {
  rows_.push_back({step, update_, seconds(), as, lives_[who.leads ? 1000 : who.slot], of});
}

void conductor::take_samples(std::uint64_t step) {
  if (of_.sample_file.empty()) return;
  add_row(*sender_, step, "sender", sample_of(*sender_));
  for (auto& one : receivers_) {
    bool const lasts =
        of_.how == mode::flat || one->slot == 0 || (of_.how == mode::restarts && one->slot == 1);
    if (lasts) add_row(*one, step, "receiver " + std::to_string(one->slot), sample_of(*one));
  }
  if (of_.sample_every == 0 && rows_.size() > rows_kept) { // half of them, half as often
    every_ *= 2;
    std::erase_if(rows_, [this](row const& one) { return one.step % every_ != 0; });
  }
}

/// Compares a process with what it was when it had been warm: it must not have grown.
void conductor::compare_samples(child& who, std::uint64_t warm) {
  auto& base = baselines_[who.name];
  if (base.seen++ < warm) return;
  auto now = sample_of(who);
  if (!base.at) base.at = now;
  auto const first = *base.at;
  auto const grown = [&]() -> std::string {
    auto const differs = [&](char const* what, std::uint64_t before, std::uint64_t after) {
      return who.name + " has " + std::to_string(after) + " " + what + " and had " + std::to_string(before);
    };
    if (now.fds != first.fds) return differs("descriptors", first.fds, now.fds);
    if (now.threads != first.threads) return differs("threads", first.threads, now.threads);
    if (now.device_mib > first.device_mib + device_slack_mib)
      return differs("MiB of GPU memory", first.device_mib, now.device_mib);
    if (testing::sanitized) return {}; // their own memory comes and goes
    if (now.mappings > first.mappings + mapping_slack)
      return differs("mappings", first.mappings, now.mappings);
    if (now.shared_kib > first.shared_kib + shared_slack_kib)
      return differs("KiB of shared memory", first.shared_kib, now.shared_kib);
    if (now.heap_bytes > first.heap_bytes + heap_slack)
      return differs("bytes of heap in use", first.heap_bytes, now.heap_bytes);
    if (now.anon_kib > first.anon_kib + anon_slack_kib)
      return differs("KiB of memory of its own", first.anon_kib, now.anon_kib);
    return {};
  };
  // A thread that was told to end, or a peer whose end was just seen, may take a moment.
  auto text = grown();
  for (int i = 0; i < 40 && !text.empty(); ++i) {
    wait_for([] { return false; }, milliseconds(25));
    now = sample_of(who);
    text = grown();
  }
  if (!text.empty()) throw wrong(text);
  auto const as = who.leads ? std::string("sender") : "receiver " + std::to_string(who.slot);
  auto const [at, fresh] = flat_.try_emplace(as, first, now);
  at->second.second = now;
  if (who.leads && of_.how == mode::restarts && of_.killed == victim::both) at->second.first = first;
}
void conductor::print(std::FILE* to) const {
  auto const number = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
  auto const list = [&](char const* what, std::map<std::string, std::uint64_t> const& all) {
    std::fprintf(to, "%s:", what);
    char const* between = " ";
    for (auto const& [key, value] : all) {
      std::fprintf(to, "%s%s %llu", between, key.c_str(), number(value));
      between = ", ";
    }
    std::fprintf(to, "%s\n", all.empty() ? " none" : "");
  };
  std::fprintf(to,
               "%llu updates of %llu layouts in %.1f s, through %llu rings of %llu sender processes, to %llu "
               "receiver processes\n",
               number(counted_.updates), number(counted_.layouts), seconds(), number(counted_.rings),
               number(counted_.senders), number(counted_.receivers));
  std::fprintf(
      to,
      "%.1f MB sent in %llu buckets; %.1f MB compared byte by byte in %llu looks at a receiver's memory; "
      "%llu versions held compared with the sender's list, of them %llu after a commit that was "
      "unconfirmed\n",
      static_cast<double>(counted_.bytes_sent) / 1e6, number(counted_.buckets),
      static_cast<double>(counted_.bytes_compared) / 1e6, number(counted_.checks), number(counted_.held),
      number(counted_.settled));
  list("outcomes", counted_.outcomes);
  list("given as", counted_.ways);
  list("tensors in shared memory", counted_.memories);
  list("committed by route", counted_.routes);
  list("taken into", counted_.styles);
  list("faults", counted_.faults);
  list("sends that failed", counted_.errors);
  for (auto const& [who, pair] : flat_) {
    auto const& [first, last] = pair;
    std::fprintf(
        to,
        "%s, after the warm-up and at the end: fds %llu %llu, mappings %llu %llu, threads %llu %llu, heap "
        "in use %llu %llu bytes, RssAnon %llu %llu KiB, RssShmem %llu %llu KiB, device %llu %llu MiB\n",
        who.c_str(), number(first.fds), number(last.fds), number(first.mappings), number(last.mappings),
        number(first.threads), number(last.threads), number(first.heap_bytes), number(last.heap_bytes),
        number(first.anon_kib), number(last.anon_kib), number(first.shared_kib), number(last.shared_kib),
        number(first.device_mib), number(last.device_mib));
  }
}

void conductor::write_samples() const {
  if (of_.sample_file.empty()) return;
  std::ofstream file(of_.sample_file);
  file << "update,seconds,process,life,anon_kib,shared_kib,heap_bytes,fds,mappings,threads,device_mib\n";
  for (auto const& one : rows_)
    file << one.update << ',' << std::round(one.seconds * 10) / 10 << ',' << one.process << ',' << one.life
         << ',' << one.of.anon_kib << ',' << one.of.shared_kib << ',' << one.of.heap_bytes << ','
         << one.of.fds << ',' << one.of.mappings << ',' << one.of.threads << ',' << one.of.device_mib << '\n';
  if (!file.flush()) throw wrong("the samples can't be written to " + of_.sample_file);
}
} // namespace ropeway::soak
