#include "search.hpp"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <fstream>

#include "state.hpp"

namespace ropeway::explorer {
namespace {

using number = std::uint32_t;
constexpr number nobody = UINT32_MAX;

/// States by a hash of 128 bits of their description. That two of a few million states share one is less
/// likely than 1 in 10^24.
class state_table {
 public:
  state_table() : places_(1u << 16, nobody) {}

  /// The state's number, and whether it is new.
  std::pair<number, bool> add(XXH128_hash_t const& hash) {
    if (hashes_.size() * 2 >= places_.size()) grow();
    auto const at = place(hash);
    if (places_[at] != nobody) return {places_[at], false};
    places_[at] = static_cast<number>(hashes_.size());
    hashes_.push_back(hash);
    return {places_[at], true};
  }
  std::size_t size() const { return hashes_.size(); }

 private:
  std::size_t place(XXH128_hash_t const& hash) const {
    std::size_t const mask = places_.size() - 1;
    std::size_t at = hash.low64 & mask;
    while (places_[at] != nobody && !XXH128_isEqual(hashes_[places_[at]], hash)) at = (at + 1) & mask;
    return at;
  }
  void grow() {
    std::vector<number> old(places_.size() * 2, nobody);
    old.swap(places_);
    for (number n = 0; n < hashes_.size(); ++n) places_[place(hashes_[n])] = n;
  }

  std::vector<XXH128_hash_t> hashes_;
  std::vector<number> places_;
};

struct way {
  number from = nobody;
  step by;
};
/// From one state to another by what is done sooner or later.
struct edge {
  number from, to;
};

std::uint64_t megabytes_in_use() {
  std::uint64_t whole = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> whole >> resident;
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)) >> 20;
}

class search {
 public:
  search(bounds const& of, limits const& within) : of_(of), within_(within) {}

  outcome_of_search run() {
    auto const began = std::chrono::steady_clock::now();
    number at = nobody;
    step last;
    bool after_step = false;
    try {
      world first(of_);
      add(first, {});
      while (!waiting_.empty()) {
        at = waiting_.front().first;
        world const from = std::move(waiting_.front().second);
        waiting_.pop_front();
        after_step = false;
        std::vector<step>& steps = steps_;
        from.possible(steps);
        if (from.at_rest(steps)) ends_.push_back(at);
        after_step = true;
        for (step const& s : steps) {
          last = s;
          world next = from;
          next.take(s);
          ++result_.transitions;
          auto const to = add(next, {at, s});
          if (is_work(s.what) || s.what == kind::time_passes) edges_.push_back({at, to});
        }
        if (table_.size() % 4096 == 0 && megabytes_in_use() > within_.megabytes)
          throw broken("more memory than allowed; make the bounds smaller");
      }
      after_step = false;
      at = find_circle();
      if (at != nobody) throw broken("without faults and decisions every run comes to its end");
    } catch (std::exception const& what) {
      result_.broken = what.what();
      tell_way(at, after_step ? &last : nullptr);
    }
    result_.states = table_.size();
    result_.ends = ends_.size();
    result_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    return std::move(result_);
  }

 private:
  number add(world const& w, way const& by) {
    w.describe(bytes_);
    auto const [n, fresh] = table_.add(XXH3_128bits(bytes_.data(), bytes_.size()));
    if (within_.verify) compare_futures(w, n);
    if (!fresh) return n;
    ways_.push_back(by);
    depths_.push_back(by.from == nobody ? 0 : static_cast<std::uint16_t>(depths_[by.from] + 1));
    result_.depth = std::max<std::uint32_t>(result_.depth, depths_.back());
    waiting_.emplace_back(n, w);
    return n;
  }

  /// What follows from `w` must be what followed when state `n` was met first, or `describe` leaves out too
  /// much.
  void compare_futures(world const& w, number n) {
    auto const futures = futures_of(w);
    XXH64_hash_t hash = 0;
    for (auto const& f : futures) hash = XXH3_64bits_withSeed(&f.to, sizeof f.to, hash + f.what());
    if (futures_.size() == n) return futures_.push_back(hash);
    if (futures_[n] == hash) return;
    // What only one of them has before it, and how to come to the one that was met first: the way to the
    // other is told as of all that is broken.
    auto const way_there = way_to(n);
    world first(of_);
    std::string words = "the explorer takes states for one that have different futures\nthe other one, by";
    for (auto const& s : way_there) {
      words += "\n    " + first.print(s);
      first.take(s);
    }
    auto const others = futures_of(first);
    auto const tell = [&](world const& of, std::vector<future> const& all, std::vector<future> const& known) {
      for (auto const& f : all)
        if (std::find(known.begin(), known.end(), f) == known.end()) words += "\n    " + of.print(f.by);
    };
    words += "\n  goes elsewhere by";
    tell(first, others, futures);
    words += "\n  and this one by";
    tell(w, futures, others);
    throw broken(words);
  }
  struct future {
    step by;
    std::uint64_t to; ///< the description of what follows, hashed
    unsigned what() const { return static_cast<unsigned>(by.what); }
    // Interchangeable receivers may have changed places.
    bool operator==(future const& other) const { return what() == other.what() && to == other.to; }
    bool operator<(future const& other) const {
      return std::pair(what(), to) < std::pair(other.what(), other.to);
    }
  };
  static std::vector<future> futures_of(world const& w) {
    std::vector<step> steps;
    w.possible(steps);
    std::vector<future> all;
    for (auto const& s : steps) {
      world next = w;
      next.take(s);
      std::vector<std::uint8_t> bytes;
      next.describe(bytes);
      all.push_back({s, XXH3_64bits(bytes.data(), bytes.size())});
    }
    std::sort(all.begin(), all.end());
    return all;
  }
  std::vector<step> way_to(number n) const {
    std::vector<step> steps;
    for (number at = n; at != nobody && ways_[at].from != nobody; at = ways_[at].from)
      steps.push_back(ways_[at].by);
    std::reverse(steps.begin(), steps.end());
    return steps;
  }

  /// A state to which work and time lead back, the one that was found first. Where there is none, every run
  /// of work and time ends, and at_rest() has looked at all states in which it can.
  number find_circle() {
    std::vector<bool> gone(table_.size(), false);
    for (bool const forwards : {true, false}) {
      std::vector<number> first(table_.size() + 1, 0), next(edges_.size()), waits_for(table_.size(), 0);
      auto const source = [&](edge const& e) { return forwards ? e.from : e.to; };
      auto const target = [&](edge const& e) { return forwards ? e.to : e.from; };
      for (auto const& e : edges_) ++first[source(e) + 1], ++waits_for[target(e)];
      for (std::size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
      auto place = first;
      for (auto const& e : edges_) next[place[source(e)]++] = target(e);
      std::vector<number> todo;
      for (number n = 0; n < table_.size(); ++n)
        if (waits_for[n] == 0) todo.push_back(n);
      while (!todo.empty()) {
        auto const n = todo.back();
        todo.pop_back();
        gone[n] = true;
        for (auto i = first[n]; i < first[n + 1]; ++i)
          if (--waits_for[next[i]] == 0) todo.push_back(next[i]);
      }
    }
    auto const found = std::find(gone.begin(), gone.end(), false);
    return found == gone.end() ? nobody : static_cast<number>(found - gone.begin());
  }

  void tell_way(number to, step const* last) {
    auto steps = way_to(to);
    if (last) steps.push_back(*last);
    result_.trace_steps = static_cast<std::uint32_t>(steps.size());
    try {
      world again(of_);
      again.log = &result_.trace;
      for (auto const& s : steps) {
        result_.trace.push_back(again.print(s));
        again.take(s);
      }
    } catch (std::exception const&) {
      // That is what was found.
    }
  }

  bounds const& of_;
  limits within_;
  state_table table_;
  std::vector<way> ways_;
  std::vector<std::uint16_t> depths_;
  std::vector<edge> edges_;
  std::vector<number> ends_;
  std::deque<std::pair<number, world>> waiting_;
  std::vector<std::uint8_t> bytes_;
  std::vector<step> steps_;
  std::vector<std::uint64_t> futures_; ///< of each state, hashed
  outcome_of_search result_;
};

} // namespace

outcome_of_search explore(bounds const& of, limits const& within) { return search(of, within).run(); }

} // namespace ropeway::explorer
