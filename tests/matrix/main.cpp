// test-matrix: kills and stops senders and receivers at every failpoint. Part of ropeway; Apache-2.0.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <poll.h>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <utility>
#include <vector>

#include "cast.hpp"
#include "director.hpp"
#include "scenario.hpp"
#include "shared.hpp"
#include "support/fork_child.hpp"

using namespace ropeway::matrix;
using ropeway::device;
using ropeway::unique_fd;
using ropeway::testing::fork_child;

namespace {

constexpr char usage[] =
    "test-matrix [OPTION...]: sender or receivers are killed or stopped at every failpoint\n"
    "  --list             the cells, and nothing else\n"
    "  --shard I/N        the I-th of N parts, of equal size give or take (1/1)\n"
    "  --only TEXT        cells whose name, as --list shows it, has this text\n"
    "  --json FILE        one line a cell\n"
    "  --played FILE      cells of which FILE (of --json, with the same devices) says that they held are "
    "left out\n"
    "  --commit NAME      what the lines say of the code that was tested (what ROPEWAY_COMMIT says)\n"
    "  --route ROUTE      cells in which the bytes take this route: host, staged or mapped\n"
    "  --device D         where the weights lie on both sides: host or cuda:N (host)\n"
    "  --sender-device D, --receiver-device D\n"
    "  --jobs N           cells at a time (3)\n"
    "  --spares N         processes started ahead for each of them (4 if there are devices, else 0)\n"
    "  --apart            no process is started while a cell is played (if there are devices)\n"
    "  --limits N         limits are so many times as long (1)\n"
    "  --within N         no cell is begun after so many seconds; those that were not count as failed\n"
    "The last line is `N passed, N failed`. The exit status is 77 where there is no such device.\n";

struct arguments {
  bool list = false;
  unsigned long shard = 1, shards = 1, jobs = 3, within = 0, limits = 1;
  std::string only, json, commit = "unknown", route;
  std::vector<std::string> played;
  std::optional<unsigned long> spares;
  bool apart = false;
  places where;

  std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
  bool time_is_up() const {
    return within != 0 && std::chrono::steady_clock::now() - began > std::chrono::seconds(within);
  }
  bool plays_apart() const { return apart || where.has_devices(); }
  casting cast(intermission* between) const {
    casting how;
    how.where = where;
    how.spares = spares.value_or(where.has_devices() ? 4 : 0);
    if (plays_apart()) how.apart = between;
    how.limits = static_cast<int>(limits);
    return how;
  }
};

struct bad_usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

device device_from(std::string const& text) {
  if (text == "host") return device::host();
  if (text.starts_with("cuda:")) return device::cuda(std::stoi(text.substr(5)));
  throw bad_usage("no device " + text);
}

arguments read(int count, char** words) {
  arguments result;
  if (char const* const commit = std::getenv("ROPEWAY_COMMIT")) result.commit = commit;
  for (int i = 1; i < count; ++i) {
    std::string const option = words[i];
    auto const value = [&]() -> std::string {
      if (++i == count) throw bad_usage(option + " needs a value");
      return words[i];
    };
    if (option == "--list") {
      result.list = true;
    } else if (option == "--shard") {
      auto const text = value();
      auto const slash = text.find('/');
      if (slash == text.npos) throw bad_usage("--shard is I/N");
      result.shard = std::stoul(text), result.shards = std::stoul(text.substr(slash + 1));
      if (result.shard < 1 || result.shard > result.shards) throw bad_usage("--shard is 1/N to N/N");
    } else if (option == "--only") {
      result.only = value();
    } else if (option == "--json") {
      result.json = value();
    } else if (option == "--played") {
      result.played.push_back(value());
    } else if (option == "--commit") {
      result.commit = value();
    } else if (option == "--route") {
      result.route = value();
    } else if (option == "--jobs") {
      result.jobs = std::max(1ul, std::stoul(value()));
    } else if (option == "--spares") {
      result.spares = std::stoul(value());
    } else if (option == "--apart") {
      result.apart = true;
    } else if (option == "--limits") {
      result.limits = std::max(1ul, std::stoul(value()));
    } else if (option == "--within") {
      result.within = std::stoul(value());
    } else if (option == "--device") {
      result.where.sender = result.where.receivers = device_from(value());
    } else if (option == "--sender-device") {
      result.where.sender = device_from(value());
    } else if (option == "--receiver-device") {
      result.where.receivers = device_from(value());
    } else {
      throw bad_usage("no option " + option);
    }
  }
  return result;
}

/// What came of a cell, as it goes from the process that played it to the one that counts.
struct result {
  std::uint32_t index = 0, count_of_wrong = 0, replays = 0;
  std::uint32_t started = 0; ///< processes that were started since the cell before
  double slowest = -1, took = 0;
  double stood_still = 0, stood_still_at_first = 0;
  char survivors[256] = {};
  char wrong[3000] = {}, wrong_at_first[1000] = {};
  passings by_sender{}, by_odd_one{};
};

constexpr std::uint32_t most_replays = 3;
constexpr double hangs = 10000; // milliseconds; a machine that stands still goes on before

void copy_text(char* to, std::size_t size, std::string const& from) {
  auto const length = std::min(from.size(), size - 1);
  std::memcpy(to, from.data(), length);
  to[length] = 0;
}

std::string to_text(std::vector<finding> const& wrong) {
  std::string text;
  for (auto const& one : wrong) text += (text.empty() ? "" : "; ") + one.text;
  return text;
}

/// Whether nothing is wrong but that something took too long.
bool only_late(std::vector<finding> const& wrong) {
  return std::ranges::all_of(wrong, [](auto const& one) { return one.late; });
}

/// Whether the machine, and not the library, may have made the play what it was.
bool proves_nothing(cell const& what, play_bill const& how, std::vector<finding> const& wrong) {
  // With limits of half a second, who did not run for a tenth may look asleep.
  bool const stood_still = how.stood_still > double(how.longest_limit.count()) / 5 && how.stood_still < hangs;
  // A rehearsal that stood still may have come to other failpoints than it does otherwise.
  if (wrong.empty()) return stood_still && what.trigger.passing == 0;
  // Not all that keeps a process waiting shows. What is slow by itself is late every time.
  return stood_still || only_late(wrong);
}

result play(director& with, cell const& what, std::uint32_t index) {
  result out;
  out.index = index;
  auto const started = std::chrono::steady_clock::now();
  auto const before = with.started();
  auto how = with.play(what);
  auto wrong = judge(what, how);
  for (; out.replays < most_replays && proves_nothing(what, how, wrong); ++out.replays) {
    if (out.replays == 0) {
      out.stood_still_at_first = how.stood_still;
      copy_text(out.wrong_at_first, sizeof out.wrong_at_first, to_text(wrong));
    }
    if (!only_late(wrong)) with.start_afresh();
    how = with.play(what);
    wrong = judge(what, how);
  }
  if (!only_late(wrong)) with.start_afresh();
  out.stood_still = how.stood_still;
  out.started = static_cast<std::uint32_t>(with.started() - before);
  out.took = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started).count();
  out.count_of_wrong = static_cast<std::uint32_t>(wrong.size());
  copy_text(out.wrong, sizeof out.wrong, to_text(wrong));
  std::ostringstream survivors;
  for (std::uint32_t i = 0; i < how.fates.size(); ++i) {
    auto const& its = how.fates[i];
    if (!its.exists || its.victim || !its.milliseconds || i == filler) continue;
    if (survivors.tellp() > 0) survivors << ", ";
    survivors << '"' << (i == the_sender ? "sender" : "r" + std::to_string(i - 1)) << "\": ";
    survivors.precision(1);
    survivors << std::fixed << *its.milliseconds;
    out.slowest = std::max(out.slowest, *its.milliseconds);
  }
  copy_text(out.survivors, sizeof out.survivors, survivors.str());
  out.by_sender = how.fates[the_sender].passed;
  out.by_odd_one = how.fates[odd_one].passed;
  return out;
}

struct season {
  std::size_t played = 0; ///< all, unless the time was up
  bool ended_well = true; ///< no process that played, or had others play, ended otherwise than it should
};

/// Plays cells in several processes, each of which takes the next one that nobody has taken.
template <class Tell>
season play_all(std::vector<cell> const& cells, arguments const& how, Tell const& tell) {
  auto const shared_next = share_with_children<std::atomic<std::uint32_t>>();
  auto const between = share_with_children<intermission>();
  auto& next = *shared_next;
  int ends[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    throw std::system_error(errno, std::generic_category(), "socketpair");
  unique_fd mine(ends[0]), theirs(ends[1]);
  std::vector<fork_child> workers;
  for (unsigned long i = 0; i < std::min<unsigned long>(how.jobs, cells.size()); ++i)
    workers.emplace_back([&] {
      mine.reset();
      director with(how.cast(between.get()));
      for (auto index = next++; index < cells.size() && !how.time_is_up(); index = next++) {
        auto const done = play(with, cells[index], index);
        if (::send(theirs.get(), &done, sizeof done, MSG_NOSIGNAL) != sizeof done) return 1;
      }
      auto const wrong = with.close();
      for (auto const& one : wrong) std::fprintf(stderr, "at the end: %s\n", one.text.c_str());
      return wrong.empty() ? 0 : 1;
    });
  theirs.reset();
  std::size_t heard = 0;
  for (auto one = std::make_unique<result>(); heard < cells.size(); ++heard) {
    ssize_t got = -1;
    do got = ::recv(mine.get(), one.get(), sizeof *one, 0);
    while (got < 0 && errno == EINTR);
    if (got != sizeof *one) break; // all have ended
    tell(*one);
  }
  season result{heard, heard == cells.size() || how.time_is_up()};
  for (auto& one : workers) result.ended_well = one.wait() == 0 && result.ended_well;
  return result;
}

/// The same for a name everywhere and always.
std::uint64_t hash(std::string const& text) {
  std::uint64_t value = 0xcbf29ce484222325;
  for (char const c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return value ^ (value >> 29);
}

std::string quoted(std::string const& text) {
  std::string out = "\"";
  for (char const c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return out + "\"";
}

/// A line up to what came of the cell: no other cell's line begins so.
std::string start_of_line(cell const& what, arguments const& how) {
  std::ostringstream line;
  line << "{\"transition\": " << quoted(what.transition()) << ", \"passing\": " << what.trigger.passing
       << ", \"signal\": \"" << what.signal_name() << "\", \"victim\": \"" << name(what.who)
       << "\", \"scenario\": \"" << what.what->name << "\", \"route\": \"" << how.where.route(*what.what)
       << "\", \"result\": ";
  return line.str();
}
constexpr std::string_view held = "\"ok\"";

void write_line(std::ostream& out, cell const& what, result const& came, arguments const& how) {
  std::ostringstream line;
  line << start_of_line(what, how) << (came.count_of_wrong == 0 ? held : "\"FAIL\"") << ", \"ms\": {"
       << came.survivors << "}, \"replays\": " << came.replays << ", \"took\": ";
  line.precision(1);
  line << std::fixed << came.took << ", \"stood_still\": " << came.stood_still
       << ", \"wrong\": " << quoted(came.wrong) << ", \"commit\": " << quoted(how.commit) << "}\n";
  out << line.str() << std::flush;
}

/// The beginnings of the lines of cells that have held already.
std::set<std::string> those_that_held(std::vector<std::string> const& files) {
  std::set<std::string> found;
  for (auto const& file : files) {
    std::ifstream in(file);
    if (!in) throw std::runtime_error("can't read " + file);
    for (std::string line; std::getline(in, line);) {
      constexpr std::string_view result = "\"result\": ";
      auto const at = line.find(result);
      if (at != line.npos && std::string_view(line).substr(at + result.size()).starts_with(held))
        found.insert(line.substr(0, at + result.size()));
    }
  }
  return found;
}

bool devices_are_here(places const& where) {
  fork_child probe([&] { return exists(where.sender) && exists(where.receivers) ? 0 : 1; });
  return probe.wait() == 0;
}

int run(arguments const& how) {
  if (how.where.has_devices() && !devices_are_here(how.where)) {
    std::cout << "SKIPPED: the matrix on device memory: there is no such device here\n";
    return 77;
  }
  unsigned passed = 0, failed = 0, replays = 0, started = 0;
  auto const played_again = [&](cell const& what, result const& came) {
    replays += came.replays;
    if (came.wrong_at_first[0] == 0 || how.list) return;
    std::cout << "again: " << what.full_name() << ": " << came.wrong_at_first << " (did not run for "
              << std::lround(came.stood_still_at_first) << " ms)" << std::endl;
  };

  // Every scenario without a victim: that must go well, and shows which failpoints there are to arm. Once,
  // unless one was missed; on devices some scenarios are left out, and nobody can tell.
  std::vector<cell> rehearsals;
  std::vector<walk> walks;
  for (auto const& one : scenarios()) {
    if (how.where.has_devices() && !one.fits_devices()) continue;
    for (bool const group : {false, true}) {
      cell plain;
      plain.what = &one;
      plain.who = group ? victim::member : victim::nobody;
      plain.trigger.process = most_processes; // nobody
      rehearsals.push_back(plain);
      walks.push_back({&one, group, {}, {}});
    }
  }
  arguments rehearsing = how;
  rehearsing.spares = 0; // hardly anybody is killed
  season rehearsed;
  std::vector<std::string> missed;
  auto const heard_of_rehearsal = [&](result const& came) {
    started += came.started;
    played_again(rehearsals[came.index], came);
    walks[came.index].add(came.by_sender, came.by_odd_one);
    // A rehearsal in a group has a victim in name only.
    std::string const wrong = came.wrong;
    if (came.count_of_wrong == 0) return;
    ++failed;
    std::cout << "FAILED: nothing | " << rehearsals[came.index].what->name
              << (walks[came.index].group ? " in a group" : "") << ": " << wrong << std::endl;
  };
  for (std::uint32_t again = 0; again <= most_replays; ++again) {
    auto const once = play_all(rehearsals, rehearsing, heard_of_rehearsal);
    rehearsed = {once.played, once.ended_well && rehearsed.ended_well};
    missed = how.where.has_devices() ? std::vector<std::string>() : gaps(walks);
    if (missed.empty() || failed != 0) break;
  }
  passed += static_cast<unsigned>(rehearsed.played) - failed;
  failed += static_cast<unsigned>(rehearsals.size() - rehearsed.played);
  for (auto const& wrong : missed) {
    ++failed;
    std::cout << "FAILED: coverage: " << wrong << std::endl;
  }

  std::vector<cell> cells;
  auto const have_held = those_that_held(how.played);
  std::size_t left_out = 0;
  for (auto const& one : cells_of(walks, how.where)) {
    auto const name = one.full_name();
    if (!how.route.empty() && how.route != how.where.route(*one.what)) continue;
    if (hash(name) % how.shards != how.shard - 1 || name.find(how.only) == name.npos) continue;
    if (have_held.contains(start_of_line(one, how)))
      ++left_out;
    else
      cells.push_back(one);
  }
  if (left_out != 0 && !how.list) std::cout << left_out << " cells have held before, and are left out\n";
  // Those that kill wait for new processes, and have the others wait with them.
  if (how.plays_apart()) {
    auto const all = std::exchange(cells, {});
    for (bool const stops : {true, false})
      std::ranges::copy_if(all, std::back_inserter(cells),
                           [&](auto const& one) { return one.stops() == stops; });
  }
  if (how.list) {
    for (auto const& one : cells) std::cout << one.full_name() << '\n';
    return failed == 0 ? 0 : 1;
  }
  if (cells.empty() && !how.route.empty()) {
    std::cout << "SKIPPED: route " << how.route
              << ": no cell takes it; say where the weights lie with --device\n";
    return 77;
  }
  std::ofstream json;
  if (!how.json.empty()) {
    json.open(how.json);
    if (!json) throw std::runtime_error("can't write " + how.json);
  }
  double sum[2] = {0, 0};
  unsigned count[2] = {0, 0};
  auto const played = play_all(cells, how, [&](result const& came) {
    auto const& what = cells[came.index];
    played_again(what, came);
    started += came.started;
    sum[what.stops()] += came.took;
    ++count[what.stops()];
    ++(came.count_of_wrong == 0 ? passed : failed);
    if (came.count_of_wrong != 0)
      std::cout << "FAILED: " << what.full_name() << ": " << came.wrong << std::endl;
    if (json.is_open()) write_line(json, what, came, how);
  });
  if (auto const left = cells.size() - played.played; left != 0) {
    failed += static_cast<unsigned>(left);
    std::cout << "FAILED: " << left << " cells were not played"
              << (how.time_is_up() ? ": the time was up\n" : "\n");
  }
  if (!rehearsed.ended_well || !played.ended_well) {
    ++failed;
    std::cout << "FAILED: a process ended before its time, or not well\n";
  }
  auto const seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - how.began);
  std::cout << points().size() << " failpoints, " << rehearsed.played << " rehearsals, " << played.played
            << " cells in " << seconds.count() << " s with " << started << " processes; on average ";
  for (bool const stops : {false, true})
    if (count[stops] != 0)
      std::cout << static_cast<int>(sum[stops] / count[stops]) << " ms a cell with "
                << (stops ? "SIGSTOP " : "SIGKILL ");
  std::cout << '\n';
  if (replays != 0)
    std::cout
        << replays
        << " times a cell was played again, because the machine had stood still or something was late\n";
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 ? 0 : 1;
}

} // namespace

int main(int count, char** words) {
  try {
    return run(read(count, words));
  } catch (bad_usage const& e) {
    std::cerr << "test-matrix: " << e.what() << '\n' << usage;
    return 2;
  } catch (std::exception const& e) {
    std::cerr << "test-matrix: " << e.what() << "\n0 passed, 1 failed\n";
    return 1;
  }
}
