// Peers that lie: any message at any time. The machines neither throw nor crash, and act for nobody who is
// gone.
#include <doctest/doctest.h>

#include <random>
#include <set>
#include <utility>

#include "base/codec.hpp"
#include "bench.hpp"
#include "support/sanitized.hpp"

using namespace ropeway;
using namespace ropeway::test;

namespace {

/// Numbers that are often right, sometimes near, and sometimes absurd.
class liar {
 public:
  explicit liar(std::uint32_t seed) : random_(seed) {}

  std::uint64_t number() {
    switch (random_() % 8) {
    case 0: return ~std::uint64_t(0);
    case 1: return std::uint64_t(1) << (random_() % 64);
    case 2: return random_();
    default: return random_() % 5;
    }
  }
  template <class T>
  void scribble(T& v) {
    if constexpr (std::is_integral_v<T>)
      v = static_cast<T>(number());
    else if constexpr (std::is_same_v<T, std::string>)
      v = std::string(random_() % 4, 'x') + (random_() % 8 == 0 ? "\n" : "");
    else if constexpr (requires { v.fill(0); })
      v[random_() % v.size()] = static_cast<std::uint8_t>(random_() % 2);
    else
      v.resize(random_() % 4);
  }
  message any() {
    message m;
    boost::mp11::mp_with_index<std::variant_size_v<message>>(
        random_() % std::variant_size_v<message>, [&](auto i) {
          auto& made = m.emplace<i>();
          codec::detail::for_each_member(made, [&](char const*, auto& member) { scribble(member); });
        });
    if (auto* hi = std::get_if<hello>(&m); hi && random_() % 2 == 0) {
      auto const good = sender_bench::hello_of(1);
      hi->magic = good.magic;
      hi->oldest = good.oldest;
      hi->newest = good.newest;
      hi->schema = good.schema;
    }
    if (auto* w = std::get_if<welcome>(&m); w && random_() % 2 == 0) *w = receiver_bench::welcome_of();
    if (auto* r = std::get_if<ring>(&m); r && random_() % 2 == 0) *r = receiver_bench::ring_of(r->id % 3);
    return m;
  }
  /// Flips bits of a datagram; nothing if it is no message any more.
  std::optional<message> flipped(message const& m) {
    std::vector<std::byte> bytes;
    encode(m, bytes);
    bytes[random_() % bytes.size()] ^= std::byte(1u << (random_() % 8));
    std::string wrong;
    return decode(bytes, wrong);
  }
  unsigned dice(unsigned n) { return static_cast<unsigned>(random_() % n); }

 private:
  std::mt19937 random_;
};

constexpr std::uint32_t tries = ropeway::testing::rounds(5'000u);

} // namespace

TEST_CASE("a sender survives any messages, and its honest receivers commit all the same") {
  unsigned honest_commits = 0;
  for (std::uint32_t seed = 1; seed <= tries; ++seed) {
    liar l(seed);
    sender_bench b(1 + l.dice(3));
    std::set<peer_id> there = {1};
    std::vector<published> to_load; // of the honest receiver 1
    bool committed_1 = false;
    auto const handle = [&] {
      for (bool more = true; more;) {
        more = false;
        for (auto const& a : b.machine.take()) {
          if (auto const* s = std::get_if<send_action::say>(&a)) {
            REQUIRE(there.count(s->to) == 1);
            std::vector<std::byte> bytes;
            encode(s->what, bytes); // whatever is said can be sent
            if (s->to != 1) continue;
            more = true;
            if (auto const* g = std::get_if<begin>(&s->what)) {
              b.from(1, accept{g->update});
            } else if (auto const* r = std::get_if<ring>(&s->what)) {
              b.from(1, ring_mapped{r->id});
            } else if (auto const* p = std::get_if<published>(&s->what)) {
              b.from(1, released{p->update, p->seq});
              if (p->bucket == 2) b.from(1, all_copied{p->update});
            } else if (auto const* c = std::get_if<protocol::commit>(&s->what)) {
              committed_1 = true;
              b.from(1, committed{c->update});
            }
          } else if (auto const* d = std::get_if<send_action::drop>(&a)) {
            REQUIRE(d->peer != 1);
            REQUIRE(there.erase(d->peer) == 1);
            REQUIRE(d->text.find('\n') == std::string::npos);
          } else if (auto const* m = std::get_if<send_action::make_ring>(&a)) {
            b.machine.ring_ready(m->ring, b.now);
            more = true;
          } else if (auto const* k = std::get_if<send_action::pack>(&a)) {
            b.machine.packed(k->seq, b.now);
            more = true;
          } else if (auto const* y = std::get_if<send_action::relay>(&a)) {
            b.machine.relayed(y->seq, b.now);
            more = true;
          } else if (std::holds_alternative<send_action::drain>(a)) {
            b.machine.drained(b.now);
            more = true;
          }
        }
      }
    };
    b.greet(1);
    peer_id next = 2;
    for (int i = 0; i < 40; ++i) {
      if (there.size() < 4 && l.dice(2) == 0) {
        there.insert(next);
        b.connect(next);
        if (l.dice(4) != 0) b.from(next, b.hello_of(next, {"", 0, l.dice(2) == 0}));
        ++next;
      }
      if (i == 10) b.start(3, l.dice(2));
      handle();
      // A liar that is there, one that was there, or one that never was.
      peer_id const from = 2 + l.dice(next);
      auto m = l.any();
      if (l.dice(4) == 0)
        if (auto f = l.flipped(m)) m = *f;
      if (l.dice(4) == 0) m = accept{1}; // some lies look like the truth
      if (l.dice(8) == 0) m = ring_mapped{l.dice(2)};
      if (l.dice(8) == 0) m = released{1, 1 + l.dice(3)};
      b.from(from, m);
      handle();
      b.pass(std::chrono::milliseconds(l.dice(200)));
      b.from(1, alive{0});
      handle();
    }
    for (int i = 0; i < 200 && b.machine.updating(); ++i) {
      b.from(1, alive{0});
      handle();
      if (auto const at = b.machine.deadline()) {
        b.now = std::max(b.now, *at);
        b.machine.tick(b.now);
      }
      handle();
    }
    REQUIRE_FALSE(b.machine.updating());
    honest_commits += committed_1;
  }
  CHECK(honest_commits == tries);
}

TEST_CASE("a receiver survives any messages, and commits nothing that it has not loaded") {
  std::uint32_t commits = 0;
  for (std::uint32_t seed = 1; seed <= 4 * tries; ++seed) {
    liar l(seed);
    receiver_bench b;
    std::vector<std::uint64_t> bucket_bytes;
    std::uint32_t loads = 0, buckets = 0;
    bool closed = false, manifest_wanted = false;
    auto const handle = [&] {
      for (bool more = true; more;) {
        more = false;
        for (auto const& a : b.machine.take()) {
          REQUIRE_FALSE(closed); // closed is the last
          more = true;
          using namespace receive_action;
          if (auto const* s = std::get_if<receive_action::say>(&a)) {
            std::vector<std::byte> bytes;
            encode(s->what, bytes);
            if (std::holds_alternative<need_manifest>(s->what)) manifest_wanted = true;
          } else if (auto const* r = std::get_if<map_ring>(&a)) {
            b.machine.ring_mapped(r->what.id, b.now);
          } else if (auto const* lo = std::get_if<look_up_manifest>(&a)) {
            buckets = lo->what.buckets % 4;
            loads = 0;
            bucket_bytes.assign(lo->what.buckets < 4 ? buckets : 0, 3);
            if (l.dice(2) == 0)
              b.machine.manifest_known(bucket_bytes, b.now);
            else
              b.machine.manifest_unknown(b.now);
          } else if (std::holds_alternative<read_manifest>(a)) {
            b.machine.manifest_known(bucket_bytes, b.now);
          } else if (std::holds_alternative<offer>(a)) {
            b.machine.accept_update(b.now);
          } else if (auto const* k = std::get_if<bucket>(&a)) {
            ++loads;
            b.machine.loaded(k->seq, b.now);
          } else if (std::holds_alternative<receive_action::commit>(a)) {
            REQUIRE(loads == buckets);
            commits += buckets != 0;
            b.machine.commit_done(b.now);
          } else if (std::holds_alternative<receive_action::abort>(a)) {
            b.machine.drained(b.now);
          } else if (auto const* c = std::get_if<receive_action::closed>(&a)) {
            REQUIRE(c->text.find('\n') == std::string::npos);
            closed = true;
          }
        }
      }
    };
    b.machine.connected(b.now);
    handle();
    if (l.dice(8) != 0) b.hears(b.welcome_of());
    std::uint64_t update = 1, seq = 1;
    std::uint32_t next = 0, told = 0; // of the buckets that the update was said to have
    bool ring_said = false;
    auto const honest = [&]() -> message {
      if (!std::exchange(ring_said, true)) return b.ring_of(0);
      if (std::exchange(manifest_wanted, false)) return manifest_follows{update - 1, 5};
      if (next < told) return published{update - 1, seq++, next++, 0, next % 2, 3};
      if (told != 0) return told = 0, protocol::commit{update - 1};
      next = 0;
      return b.begin_of(update++, told = 1 + l.dice(3));
    };
    for (int i = 0; i < 30 && !closed; ++i) {
      // Mostly what a sender says, with a lie in it.
      message m = l.any();
      switch (l.dice(8)) {
      case 0: m = b.ring_of(l.dice(3)); break;
      case 1:
      case 2:
        m = b.begin_of(update++, l.dice(4));
        next = 0;
        break;
      case 3: m = manifest_follows{update - 1, 5}; break;
      case 4:
      case 5: m = published{update - 1, seq++, next++, l.dice(2), l.dice(2), 3}; break;
      case 6: m = protocol::commit{update - 1}; break;
      default: break;
      }
      if (l.dice(6) == 0)
        if (auto f = l.flipped(m)) m = *f;
      if (l.dice(8) != 0) m = honest();
      b.hears(m);
      handle();
      b.pass(std::chrono::milliseconds(l.dice(3000)));
      handle();
    }
    b.machine.gone(errc::peer_gone, "EOF", b.now);
    handle();
    REQUIRE(b.machine.over());
    REQUIRE(closed);
    REQUIRE_FALSE(b.machine.updating());
  }
  CHECK(commits > 0); // some stories came to their end among the lies
}
