#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <asio/thread_pool.hpp>
#include <exception>
#include <iostream>
#include <vector>

#include "cli/background.hpp"
#include "cli/commands.hpp"
#include "cli/digest.hpp"
#include "cli/exit_code.hpp"
#include "cli/load.hpp"
#include "cli/progress.hpp"
#include "cli/quantity.hpp"
#include "cli/report_json.hpp"
#include "cli/table.hpp"
#include "cli/timeline.hpp"
#include "cli/until_signal.hpp"
#include "cli/versions.hpp"
#include "ropeway/ropeway.hpp"

namespace ropeway::cli {
namespace {

struct sent_version {
  send_report report;
  std::string digest;
};

sender_options options_for(send_arguments const& arguments, observer& watch) {
  sender_options options;
  options.bucket_bytes(arguments.bucket_bytes).slots(arguments.slots).min_receivers(arguments.receivers);
  options.use_route(arguments.route).watched_by(&watch);
  if (arguments.check) options.digests(digest_choice::tensors);
  return options;
}

/// Hears of what a version that is held is given to; nobody awaits these updates.
class deliveries final : public observer {
 public:
  explicit deliveries(std::function<void(send_report const&)> tell) : tell_(std::move(tell)) {}
  /// What comes from now on are deliveries.
  void begin() noexcept { holding_ = true; }
  void update_sent(send_report const& report) override {
    if (holding_) tell_(report);
  }

 private:
  std::function<void(send_report const&)> const tell_;
  bool holding_ = false;
};

/// One run of `ropeway send`. What can be wrong is found out before anything large is read: checkpoint,
/// device, socket.
class send_run {
 public:
  send_run(send_arguments const& arguments, std::vector<sent_version>& sent)
      : arguments_(arguments)
      , sent_(sent)
      , watch_(arguments.quiet)
      , from_(checkpoint::open(arguments.checkpoint))
      , window_(arguments.where)
      , timeline_(arguments.trace, "ropeway send")
      , deliveries_([this](send_report const& report) { add_delivery(report); })
      , watchers_({&watch_, timeline_.watching(), &deliveries_})
      , sender_(loop_.get_executor(), arguments.socket, options_for(arguments, watchers_)) {}

  /// The signal that ended it, or 0. What was sent by then stands in the list it was given.
  int run() {
    int const signal = run_until_signal(loop_, send_all(), sender_.close());
    timeline_.save();
    return signal;
  }

 private:
  awaitable<void> send_all() {
    watch_.line("listening at " + sender_.path() + " for " + std::to_string(arguments_.receivers) +
                " receiver(s)");
    std::function<void(std::atomic<bool> const&)> work = [this](std::atomic<bool> const& stop) {
      load_checkpoint(stop);
    };
    co_await in_background(pool_, std::move(work));
    auto const tensors = weights_.views();
    auto const prepared = sender_.prepare(tensors);
    co_await sender_.wait_for_receivers(arguments_.receivers, arguments_.wait);
    for (std::uint64_t version = 1; version <= arguments_.versions; ++version) {
      sent_version entry;
      work = [&](std::atomic<bool> const& stop) { entry.digest = make_version(version, stop); };
      co_await in_background(pool_, std::move(work));
      try {
        entry.report = co_await sender_.send_weights(version, prepared);
        if (entry.report.digest && arguments_.with_digest) entry.digest = to_string(*entry.report.digest);
      } catch (send_failed const& error) {
        entry.report = error.report();
        sent_.push_back(std::move(entry));
        throw;
      }
      tell(entry, "version ");
      sent_.push_back(std::move(entry));
    }
    if (!arguments_.hold) co_return;
    watch_.line("holding version " + std::to_string(arguments_.versions) + " until Ctrl-C");
    deliveries_.begin();
    held_ = sender_.hold(arguments_.versions, prepared);
    // Only a signal ends this.
    asio::steady_timer never(loop_, asio::steady_timer::time_point::max());
    co_await never.async_wait(use_awaitable);
  }

  void add_delivery(send_report const& report) {
    // The bytes are those of the version that was sent last.
    sent_version entry{report, sent_.empty() ? std::string() : sent_.back().digest};
    tell(entry, "delivered version ");
    sent_.push_back(std::move(entry));
  }

  void load_checkpoint(std::atomic<bool> const& stop) {
    weights_ = weights(from_, arguments_.where, arguments_.route == route_choice::mapped);
    for (auto const& memory : weights_.shared()) sender_.share(memory);
    auto const total = weights_.total_bytes();
    load(
        from_, weights_, window_, [&](std::uint64_t bytes) { watch_.bar("loading", bytes, total); }, stop);
    watch_.end_bar();
    watch_.line("loaded " + arguments_.checkpoint.string() + ": " +
                std::to_string(weights_.entries().size()) + " tensors, " + size_text(total) + " on " +
                to_string(arguments_.where));
  }

  std::string make_version(std::uint64_t version, std::atomic<bool> const& stop) {
    if (version > 1) change_version(weights_, window_, version - 1, version, stop);
    // One that is checked computes its own.
    bool const wanted = arguments_.with_digest && !arguments_.check;
    return wanted ? digest(weights_, window_, stop) : std::string();
  }

  void tell(sent_version const& entry, std::string const& what) {
    auto const& report = entry.report;
    watch_.line(what + std::to_string(report.version) + ": " + size_text(report.bytes) + " in " +
                std::to_string(report.buckets) + " bucket(s) to " +
                std::to_string(report.count(outcome::committed)) + " of " +
                std::to_string(report.receivers.size()) + " receiver(s) in " + time_text(report.total) +
                ", " + rate_text(report.bytes, report.total));
  }

  send_arguments const& arguments_;
  std::vector<sent_version>& sent_;
  progress watch_;
  checkpoint from_;
  host_window window_;
  timeline timeline_;
  deliveries deliveries_;
  observers watchers_;
  weights weights_;
  asio::io_context loop_{1};
  asio::thread_pool pool_{1};
  sender sender_;
  held_version held_; ///< its sender closes before it ends: nobody waits for anybody then
};

boost::json::object json_report(send_arguments const& arguments, std::vector<sent_version> const& sent) {
  boost::json::object out;
  out["command"] = "send";
  out["checkpoint"] = json_text(arguments.checkpoint.string());
  out["socket"] = json_text(arguments.socket);
  out["device"] = to_string(arguments.where);
  boost::json::array versions;
  for (auto const& entry : sent) versions.push_back(to_json(entry.report, entry.digest));
  out["versions"] = std::move(versions);
  return out;
}

void print_table(std::ostream& out, std::vector<sent_version> const& sent) {
  if (sent.empty()) return;
  table rows({">version", "receiver", "outcome", "route", ">size", ">time", ">rate", "digest"});
  for (auto const& [report, hash] : sent)
    for (auto const& one : report.receivers) {
      std::string const what = one.text.empty() ? "" : ": " + one.text;
      rows.add({std::to_string(report.version), printable(one.name),
                std::string(name(one.what)) + printable(what), std::string(name(one.way)),
                one.copied ? size_text(one.copied) : "-", time_text(one.after),
                one.copied ? rate_text(one.copied, one.after) : "-", hash});
    }
  rows.print(out);
  out.flush();
}

} // namespace

int send(send_arguments const& arguments) {
  std::vector<sent_version> sent;
  auto const run = [&] { return send_run(arguments, sent).run(); };
  ending const end = carry_out(run);
  if (arguments.json)
    print_report(std::cout, json_report(arguments, sent), end.status, end.error);
  else
    print_table(std::cout, sent);
  return say(end);
}

} // namespace ropeway::cli
