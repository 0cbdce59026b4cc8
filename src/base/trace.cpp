#include "ropeway/trace.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <iterator>
#include <mutex>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "base/unique_fd.hpp"
#include "base/utf8.hpp"
#include "ropeway/error.hpp"

namespace ropeway {
namespace {

using clock = std::chrono::steady_clock;

/// A stretch as it is kept.
struct stretch {
  std::optional<update_stage> what; ///< nothing: a whole update
  std::uint64_t version = 0, bytes = 0;
  std::optional<std::uint32_t> bucket;
  std::string receiver;   ///< empty: this process itself
  bool committed = false; ///< of a whole update
  clock::time_point began, ended;
};

/// As a JSON string. Names come from other processes.
std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (char const c : as_utf8(text)) {
    if (auto const byte = static_cast<unsigned char>(c); byte < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", byte);
      out += escape;
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out + '"';
}

/// Nanoseconds as the microseconds of the format.
std::string micros(nanoseconds time) {
  char text[32];
  std::snprintf(text, sizeof text, "%lld.%03lld", static_cast<long long>(time.count() / 1000),
                static_cast<long long>(time.count() % 1000));
  return text;
}

/// A line of the timeline. Stretches of one line must not overlap, so one that would have such becomes
/// several.
struct line {
  std::string name;
  std::size_t row = 0; ///< among those of the name
  clock::time_point busy_until;
};

/// The events of some stretches, for a file that other processes, and other recorders of this one, write to.
class writer {
 public:
  /// `process` is a number of the recorder's own: process numbers are the same in two containers.
  writer(std::uint32_t process, std::string const& name, std::vector<line>& lines)
      : process_(process), lines_(lines), named_(lines.size(), false) {
    metadata("process_name", 0, "\"name\":" + json_string(name));
  }

  /// Stretches come in the order of their begin.
  void add(stretch const& one) {
    auto const number = place(one);
    if (!named_[number]) {
      auto const& [name, row, until] = lines_[number];
      std::string const shown = row == 0 ? name : name + " (" + std::to_string(row + 1) + ")";
      metadata("thread_name", number + 1, "\"name\":" + json_string(shown));
      metadata("thread_sort_index", number + 1, "\"sort_index\":" + std::to_string(order(one)));
      named_[number] = true;
    }
    std::string const category(one.what ? name(*one.what) : "update");
    std::string label = one.what ? category : "version " + std::to_string(one.version);
    if (one.bucket) label += " " + std::to_string(*one.bucket);
    std::string args = "\"version\":" + std::to_string(one.version);
    if (one.bucket) args += ",\"bucket\":" + std::to_string(*one.bucket);
    if (one.bytes) args += ",\"bytes\":" + std::to_string(one.bytes);
    if (!one.receiver.empty()) args += ",\"receiver\":" + json_string(one.receiver);
    if (!one.what) args += one.committed ? ",\"committed\":true" : ",\"committed\":false";
    event(label, "X", number + 1,
          ",\"cat\":\"" + category + "\",\"ts\":" + micros(one.began.time_since_epoch()) +
              ",\"dur\":" + micros(one.ended - one.began),
          args);
  }
  std::vector<std::string> const& events() const noexcept { return events_; }

 private:
  static int order(stretch const& one) {
    if (!one.receiver.empty()) return 100;
    return one.what ? 1 + static_cast<int>(*one.what) : 0;
  }
  std::size_t place(stretch const& one) {
    std::string const wanted = !one.receiver.empty() ? one.receiver
                               : one.what            ? std::string(name(*one.what))
                                                     : "updates";
    std::size_t row = 0;
    for (std::size_t i = 0; i < lines_.size(); ++i)
      if (lines_[i].name == wanted) {
        if (lines_[i].busy_until <= one.began) {
          lines_[i].busy_until = one.ended;
          return i;
        }
        ++row;
      }
    lines_.push_back({wanted, row, one.ended});
    named_.push_back(false);
    return lines_.size() - 1;
  }
  void metadata(std::string_view what, std::size_t line_number, std::string const& args) {
    event(what, "M", line_number, {}, args);
  }
  void event(std::string_view label, std::string_view phase, std::size_t line_number, std::string const& more,
             std::string const& args) {
    events_.push_back("{\"name\":" + json_string(label) + ",\"ph\":\"" + std::string(phase) +
                      "\",\"pid\":" + std::to_string(process_) + ",\"tid\":" + std::to_string(line_number) +
                      more + ",\"args\":{" + args + "}}");
  }

  std::uint32_t process_;
  std::vector<line>& lines_;
  std::vector<bool> named_; // in these events
  std::vector<std::string> events_;
};

[[noreturn]] void fail(std::filesystem::path const& path, std::string const& what) {
  throw transfer_error(std::error_code(errno, std::system_category()), path.string() + ": " + what);
}

constexpr std::string_view opening = "[\n", closing = "\n]\n";
/// What every trace of ours begins with: another array is not to be added to.
constexpr std::string_view first_event = "[\n{\"name\":\"process_name\",";

/// Where the next event goes: behind the last one, over the closing bracket; 0 in an empty file.
std::uint64_t end_of_events(int fd, std::filesystem::path const& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) fail(path, "can't be examined");
  auto const refuse = [&] {
    throw transfer_error(errc::bad_path, path.string() + " is there and is no trace; name another file");
  };
  if (!S_ISREG(status.st_mode)) refuse();
  if (status.st_size == 0) return 0;
  auto const size = static_cast<std::size_t>(status.st_size);
  std::array<char, first_event.size()> head{};
  std::array<char, closing.size()> tail{};
  if (size < head.size() + tail.size()) refuse();
  errno = EIO; // of a file that becomes shorter meanwhile
  if (::pread(fd, head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()) ||
      ::pread(fd, tail.data(), tail.size(), static_cast<off_t>(size - tail.size())) !=
          static_cast<ssize_t>(tail.size()))
    fail(path, "can't be read");
  if (std::string_view(head.data(), head.size()) != first_event ||
      std::string_view(tail.data(), tail.size()) != closing)
    refuse();
  return size - tail.size();
}

void write_all(int fd, std::string_view text, std::uint64_t at, std::filesystem::path const& path) {
  while (!text.empty()) {
    auto const written = ::pwrite(fd, text.data(), text.size(), static_cast<off_t>(at));
    if (written < 0 && errno == EINTR) continue;
    if (written == 0) errno = EIO;
    if (written <= 0) fail(path, "can't be written");
    text.remove_prefix(static_cast<std::size_t>(written));
    at += static_cast<std::uint64_t>(written);
  }
}

/// Adds events to the array in a file.
void append(std::vector<std::string> const& events, std::filesystem::path const& path) {
  unique_fd const file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666));
  if (!file) fail(path, "can't be opened for the trace");
  while (::flock(file.get(), LOCK_EX) != 0)
    if (errno != EINTR) fail(path, "can't be locked");
  auto const at = end_of_events(file.get(), path);
  std::string text;
  for (auto const& one : events) {
    text += text.empty() && at == 0 ? opening : ",\n";
    text += one;
  }
  text += closing;
  try {
    write_all(file.get(), text, at, path);
  } catch (transfer_error const&) {
    // A full disk must not cost the others their trace. What was there before has its blocks.
    if (::ftruncate(file.get(), static_cast<off_t>(at)) == 0 && at != 0)
      write_all(file.get(), closing, at, path);
    throw;
  }
}

} // namespace

struct trace_recorder::recorded {
  mutable std::mutex mutex;
  std::string process;
  std::size_t limit = 0, left_out = 0;
  std::deque<stretch> stretches;
  std::uint32_t number = 0; ///< in the place of a process number
  std::mutex saving;        ///< held while a file is written
  std::vector<line> lines;  ///< of all that was saved
  struct update {
    std::uint64_t version = 0, bytes = 0;
    clock::time_point began;
  };
  std::optional<update> running;

  void keep(stretch one) {
    std::scoped_lock const lock(mutex);
    if (stretches.size() < limit)
      stretches.push_back(std::move(one));
    else
      ++left_out;
  }
};

trace_recorder::trace_recorder(std::string process, std::size_t limit)
    : state_(std::make_unique<recorded>()) {
  state_->process = std::move(process) + " (process " + std::to_string(::getpid()) + ")";
  std::random_device random;
  state_->number = 1 + random() % 0x7fff'fffe; // a positive int
  state_->limit = limit;
}

trace_recorder::~trace_recorder() = default;

void trace_recorder::save(std::filesystem::path const& path) {
  std::scoped_lock const saving(state_->saving);
  // What happens meanwhile must not wait for the file.
  std::deque<stretch> taken;
  std::size_t left_out = 0;
  {
    std::scoped_lock const lock(state_->mutex);
    taken.swap(state_->stretches);
    left_out = std::exchange(state_->left_out, 0);
  }
  auto lines = state_->lines;
  try {
    writer out(state_->number, state_->process, lines);
    std::vector<stretch const*> sorted;
    sorted.reserve(taken.size());
    for (auto const& one : taken) sorted.push_back(&one);
    std::sort(sorted.begin(), sorted.end(), [](stretch const* a, stretch const* b) {
      return std::pair(a->began, a->ended) < std::pair(b->began, b->ended);
    });
    for (auto const* const one : sorted) out.add(*one);
    append(out.events(), path);
  } catch (...) {
    std::scoped_lock const lock(state_->mutex);
    taken.insert(taken.end(), std::move_iterator(state_->stretches.begin()),
                 std::move_iterator(state_->stretches.end()));
    taken.swap(state_->stretches);
    state_->left_out += left_out;
    throw;
  }
  state_->lines = std::move(lines);
}

std::size_t trace_recorder::size() const {
  std::scoped_lock const lock(state_->mutex);
  return state_->stretches.size();
}

std::size_t trace_recorder::left_out() const {
  std::scoped_lock const lock(state_->mutex);
  return state_->left_out;
}

void trace_recorder::update_began(std::uint64_t version, std::uint64_t bytes, std::uint32_t) {
  std::scoped_lock const lock(state_->mutex);
  state_->running = {version, bytes, clock::now()};
}

void trace_recorder::stage_ended(stage_span const& what) {
  stretch one;
  one.what = what.what;
  one.version = what.version;
  one.bytes = what.bytes;
  one.bucket = what.bucket;
  one.receiver = what.receiver;
  one.began = what.began;
  one.ended = what.ended;
  state_->keep(std::move(one));
}

void trace_recorder::update_ended(std::uint64_t version, bool committed) {
  std::optional<recorded::update> running;
  {
    std::scoped_lock const lock(state_->mutex);
    running.swap(state_->running);
  }
  if (!running || running->version != version) return;
  stretch one;
  one.version = version;
  one.bytes = running->bytes;
  one.committed = committed;
  one.began = running->began;
  one.ended = clock::now();
  state_->keep(std::move(one));
}

} // namespace ropeway
