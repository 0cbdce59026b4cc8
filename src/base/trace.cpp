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
  while (!text.empty()) {
    auto const length = utf8_length(text);
    auto const byte = static_cast<unsigned char>(text[0]);
    if (length == 0) {
      out += "\\ufffd";
    } else if (byte < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", byte);
      out += escape;
    } else {
      if (byte == '"' || byte == '\\') out += '\\';
      out += text.substr(0, length);
    }
    text.remove_prefix(std::max<std::size_t>(length, 1));
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

/// The lines of the timeline. Stretches of one line must not overlap, so a line that would have such becomes
/// several.
class lines {
 public:
  explicit lines(std::vector<std::string>& events) : events_(events) {}

  /// The number of a free line of this kind for a stretch; stretches come in the order of their begin.
  int place(std::string const& name, int order, clock::time_point began, clock::time_point ended) {
    std::size_t row = 0;
    for (auto& one : lines_)
      if (one.name == name) {
        if (one.busy_until <= began) return one.busy_until = ended, one.number;
        ++row;
      }
    int const number = static_cast<int>(lines_.size()) + 1;
    lines_.push_back({name, number, ended});
    std::string const shown = row == 0 ? name : name + " (" + std::to_string(row + 1) + ")";
    metadata("thread_name", number, "\"name\":" + json_string(shown));
    metadata("thread_sort_index", number, "\"sort_index\":" + std::to_string(order));
    return number;
  }
  void metadata(std::string_view what, int number, std::string const& value) {
    events_.push_back("{\"name\":\"" + std::string(what) +
                      "\",\"ph\":\"M\",\"pid\":" + std::to_string(::getpid()) +
                      ",\"tid\":" + std::to_string(number) + ",\"args\":{" + value + "}}");
  }

 private:
  struct line {
    std::string name;
    int number;
    clock::time_point busy_until;
  };
  std::vector<std::string>& events_;
  std::vector<line> lines_;
};

std::string event(stretch const& one, int line) {
  std::string const category(one.what ? name(*one.what) : "update");
  std::string label = one.what ? category : "version " + std::to_string(one.version);
  if (one.bucket) label += " " + std::to_string(*one.bucket);
  std::string args = "\"version\":" + std::to_string(one.version);
  if (one.bucket) args += ",\"bucket\":" + std::to_string(*one.bucket);
  if (one.bytes) args += ",\"bytes\":" + std::to_string(one.bytes);
  if (!one.receiver.empty()) args += ",\"receiver\":" + json_string(one.receiver);
  if (!one.what) args += one.committed ? ",\"committed\":true" : ",\"committed\":false";
  return "{\"name\":" + json_string(label) + ",\"cat\":\"" + category +
         "\",\"ph\":\"X\",\"ts\":" + micros(one.began.time_since_epoch()) +
         ",\"dur\":" + micros(one.ended - one.began) + ",\"pid\":" + std::to_string(::getpid()) +
         ",\"tid\":" + std::to_string(line) + ",\"args\":{" + args + "}}";
}

[[noreturn]] void fail(std::filesystem::path const& path, std::string const& what) {
  throw transfer_error(std::error_code(errno, std::system_category()), path.string() + ": " + what);
}

constexpr std::string_view opening = "[\n", closing = "\n]\n";

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
  std::array<char, opening.size()> head{};
  std::array<char, closing.size()> tail{};
  if (size < head.size() + tail.size()) refuse();
  if (::pread(fd, head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()) ||
      ::pread(fd, tail.data(), tail.size(), static_cast<off_t>(size - tail.size())) !=
          static_cast<ssize_t>(tail.size()))
    fail(path, "can't be read");
  if (std::string_view(head.data(), head.size()) != opening ||
      std::string_view(tail.data(), tail.size()) != closing)
    refuse();
  return size - tail.size();
}

void write_all(int fd, std::string_view text, std::uint64_t at, std::filesystem::path const& path) {
  while (!text.empty()) {
    auto const written = ::pwrite(fd, text.data(), text.size(), static_cast<off_t>(at));
    if (written < 0 && errno == EINTR) continue;
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
  write_all(file.get(), text, at, path);
}

std::vector<std::string> events_of(std::deque<stretch> const& stretches, std::string const& process) {
  std::vector<std::string> all;
  lines places(all);
  places.metadata("process_name", 0, "\"name\":" + json_string(process));
  std::vector<stretch const*> sorted;
  for (auto const& one : stretches) sorted.push_back(&one);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](stretch const* a, stretch const* b) { return a->began < b->began; });
  for (auto const* const one : sorted) {
    std::string line = "updates";
    int order = 0;
    if (!one->receiver.empty()) {
      line = one->receiver;
      order = 100;
    } else if (one->what) {
      line = name(*one->what);
      order = 1 + static_cast<int>(*one->what);
    }
    int const number = places.place(line, order, one->began, one->ended);
    all.push_back(event(*one, number));
  }
  return all;
}

} // namespace

struct trace_recorder::recorded {
  mutable std::mutex mutex;
  std::string process;
  std::size_t limit = 0, left_out = 0;
  std::deque<stretch> stretches;
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
  state_->process = std::move(process);
  state_->limit = limit;
}

trace_recorder::~trace_recorder() = default;

void trace_recorder::save(std::filesystem::path const& path) {
  // What happens meanwhile must not wait for the file.
  std::deque<stretch> taken;
  {
    std::scoped_lock const lock(state_->mutex);
    taken.swap(state_->stretches);
  }
  try {
    append(events_of(taken, state_->process), path);
  } catch (...) {
    std::scoped_lock const lock(state_->mutex);
    taken.insert(taken.end(), std::move_iterator(state_->stretches.begin()),
                 std::move_iterator(state_->stretches.end()));
    taken.swap(state_->stretches);
    throw;
  }
  std::scoped_lock const lock(state_->mutex);
  state_->left_out = 0;
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
