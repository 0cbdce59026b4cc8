#include <unistd.h>

#include <algorithm>
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <boost/json/serialize.hpp>
#include <iostream>
#include <sstream>

#include "cli/commands.hpp"
#include "cli/exit_code.hpp"
#include "cli/quantity.hpp"
#include "cli/report_json.hpp"
#include "cli/screen.hpp"
#include "cli/table.hpp"
#include "cli/until_signal.hpp"
#include "ropeway/ropeway.hpp"

namespace ropeway::cli {
namespace {

std::string as_table(watched_sender const& seen) {
  std::ostringstream out;
  out << "sender " << seen.id.substr(0, 8) << ", " << seen.receivers.size() << " receiver(s), ";
  if (auto const& running = seen.updating)
    out << "version " << running->version << " has been running for " << time_text(running->since) << ": "
        << size_text(running->bytes) << ", " << running->packed << " of " << running->buckets
        << " bucket(s) packed\n";
  else
    out << "no update runs\n";
  if (seen.receivers.empty()) return out.str();
  table rows({"receiver", ">version", "doing", ">so far", ">last", ">time", ">rate", "last error"});
  for (auto const& one : seen.receivers)
    rows.add({printable(one.name), one.version ? std::to_string(*one.version) : "-",
              std::string(name(one.doing)), one.bytes_released ? size_text(one.bytes_released) : "-",
              one.last_took.count() ? size_text(one.last_bytes) : "-",
              one.last_took.count() ? time_text(one.last_took) : "-",
              rate_text(one.last_bytes, one.last_took), printable(one.last_error)});
  rows.print(out);
  return out.str();
}

/// One run of `ropeway watch`.
class watch_run {
 public:
  explicit watch_run(watch_arguments const& arguments)
      : arguments_(arguments)
      , terminal_(!arguments.json && !arguments.once && isatty(STDOUT_FILENO) == 1)
      , watcher_(loop_.get_executor(), receiver_options().connect_limit(arguments.connect_limit)) {}

  /// The signal that ended it, or 0.
  int run() { return run_until_signal(loop_, follow(), hang_up()); }

 private:
  /// Else the loop waits for what the sender has to say.
  awaitable<void> hang_up() {
    watcher_.close();
    co_return;
  }

  awaitable<void> follow() {
    std::string gone;
    for (bool first = true;; first = false) {
      if (!first) {
        tell_gone(gone);
        watcher_ = watcher(loop_.get_executor(), receiver_options().connect_limit(std::chrono::years(1)));
      }
      co_await watcher_.connect(arguments_.socket);
      gone.clear();
      while (gone.empty()) {
        try {
          tell(co_await watcher_.look());
        } catch (transfer_error const& error) {
          if (arguments_.once || to_exit_code(error.code()) != exit_code::peer) throw;
          gone = error.what();
        }
        if (arguments_.once) co_return;
        if (!gone.empty()) break;
        timer_.expires_after(arguments_.interval);
        co_await timer_.async_wait(use_awaitable);
      }
    }
  }

  void tell(watched_sender const& seen) {
    if (arguments_.json)
      std::cout << boost::json::serialize(to_json(seen)) << std::endl;
    else
      show(as_table(seen));
  }

  void tell_gone(std::string const& why) {
    if (arguments_.json)
      std::cout << boost::json::serialize(gone_json(why)) << std::endl;
    else
      show("the sender is gone: " + printable(why) + "\nwaiting for another one\n");
  }

  /// In the place of what was shown before, on a terminal.
  void show(std::string const& text) {
    if (!terminal_) {
      std::cout << text << std::flush;
      return;
    }
    auto const size = size_of(STDOUT_FILENO);
    // What a terminal makes of old lines when its size changes, it alone knows.
    if (size != drawn_on_ && lines_ > 0)
      std::cout << "\x1b[H\x1b[J";
    else if (lines_ > 0)
      std::cout << "\x1b[" << lines_ << "A\x1b[J";
    auto const drawn = fitted(text, size);
    std::cout << drawn << std::flush;
    lines_ = std::ranges::count(drawn, '\n');
    drawn_on_ = size;
  }

  watch_arguments const& arguments_;
  bool const terminal_;
  std::ptrdiff_t lines_ = 0; ///< that stand on the terminal
  screen_size drawn_on_;     ///< and how large it was then
  asio::io_context loop_{1};
  asio::steady_timer timer_{loop_};
  watcher watcher_;
};

} // namespace

int watch(watch_arguments const& arguments) {
  ending end = carry_out([&] { return watch_run(arguments).run(); });
  // Ctrl-C is how one stops watching.
  if (end.status == 130) end = {};
  return say(end);
}

} // namespace ropeway::cli
