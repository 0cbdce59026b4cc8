#include "board.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <ctime>
#include <stdexcept>
#include <unistd.h>

#include "session/failpoint.hpp"

namespace ropeway::matrix {
namespace {

std::vector<std::string>& all_points() {
  static std::vector<std::string> all; // filled before main
  return all;
}
std::uint32_t self = 0;

std::int64_t now() { return board::clock::now().time_since_epoch().count(); }

/// Lives on as long as the test does, in which nothing but system calls may be made: other threads held locks
/// when it was forked.
[[noreturn]] void keep_descriptors(pid_t director) {
  timespec const pause{0, 50'000'000};
  while (::kill(director, 0) == 0) ::nanosleep(&pause, nullptr);
  ::_exit(0);
}

} // namespace

std::vector<std::string> const& points() { return all_points(); }

std::size_t point(std::string_view name) {
  auto const& all = all_points();
  for (std::size_t i = 0; i < all.size(); ++i)
    if (all[i] == name) return i;
  throw std::out_of_range("no failpoint " + std::string(name));
}

board* board::mine = nullptr;

void board::reset(trigger const& armed) {
  armed_ = armed;
  director_ = ::getpid();
  for (auto& process : passed_)
    for (auto& count : process) count = 0;
  for (auto& count : told_) count = 0;
  for (auto& pid : pids_) pid = 0;
  for (auto& at : ran_at_) at = 0;
  fired_at_ = 0;
  child_ = 0;
}

void board::enter(std::uint32_t process) {
  mine = this;
  self = process;
  enlist(process, ::getpid());
  runs();
}

void board::leave() {
  if (mine != nullptr) mine->ran_at_[self] = 0;
  mine = nullptr;
}

void board::runs() {
  if (mine != nullptr) mine->ran_at_[self] = now();
}

void board::pass(std::size_t which) {
  auto const times = ++passed_[self][which];
  if (armed_.passing == times && armed_.process == self && armed_.point == which && fired_at_ == 0) fire();
}

void board::told() { ++told_[self]; }

void board::fire() {
  if (armed_.leaves_child) {
    pid_t const child = ::fork();
    if (child == 0) keep_descriptors(director_);
    child_ = std::max(child, 0); // none: the director misses it
  }
  fired_at_ = now();
  if (armed_.everybody)
    for (auto const& pid : pids_)
      if (pid != 0 && pid != ::getpid()) ::kill(pid, armed_.signal);
  ::raise(armed_.signal);
}

std::uint32_t board::passed(std::uint32_t process, std::string_view name) const {
  return passed_[process][point(name)];
}

passings board::of(std::uint32_t process) const {
  passings all{};
  for (std::size_t i = 0; i < most_points; ++i) all[i] = passed_[process][i];
  return all;
}

} // namespace ropeway::matrix

namespace ropeway::session::failpoints {

std::size_t announce(std::string name) {
  auto& all = matrix::all_points();
  if (all.size() == matrix::most_points) throw std::length_error("more failpoints than a board has room for");
  all.push_back(std::move(name));
  return all.size() - 1;
}

void pass(std::size_t which) {
  if (matrix::board::mine != nullptr) matrix::board::mine->pass(which);
}

} // namespace ropeway::session::failpoints
