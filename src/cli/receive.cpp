#include <unistd.h>

#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <cerrno>
#include <exception>
#include <iostream>
#include <optional>
#include <vector>

#include "cli/background.hpp"
#include "cli/commands.hpp"
#include "cli/digest.hpp"
#include "cli/exit_code.hpp"
#include "cli/progress.hpp"
#include "cli/quantity.hpp"
#include "cli/report_json.hpp"
#include "cli/table.hpp"
#include "cli/timeline.hpp"
#include "cli/until_signal.hpp"
#include "ropeway/checkpoint_writer.hpp"
#include "ropeway/ropeway.hpp"

namespace ropeway::cli {
namespace {

struct received_version {
  load_report report;
  std::string digest;
};

/// A wrong --out should not be found out after gigabytes have come.
void check_writable(std::filesystem::path const& out) {
  if (std::filesystem::is_directory(out))
    throw transfer_error(std::make_error_code(std::errc::is_a_directory),
                         out.string() + " can't be written: name a file in it");
  auto const parent = out.has_parent_path() ? out.parent_path() : std::filesystem::path(".");
  if (access(parent.c_str(), W_OK | X_OK) != 0)
    throw transfer_error(std::error_code(errno, std::system_category()),
                         "no file can be made in " + parent.string() + ": choose another place for --out");
}

/// Where the timeline goes, with what else is to be written checked as well.
std::optional<std::filesystem::path> trace_of(receive_arguments const& arguments) {
  if (arguments.out) check_writable(*arguments.out);
  if (arguments.out && arguments.trace &&
      std::filesystem::weakly_canonical(*arguments.out) ==
          std::filesystem::weakly_canonical(*arguments.trace))
    throw transfer_error(errc::invalid_argument,
                         "--out and --trace are both " + arguments.out->string() + ": name two files");
  return arguments.trace;
}

receiver_options options_for(receive_arguments const& arguments, observer& watch) {
  receiver_options options;
  options.name(arguments.name).where(arguments.where).connect_limit(arguments.connect_limit);
  options.use_route(arguments.route).watched_by(&watch).demand_digests(arguments.check);
  return options;
}

/// One run of `ropeway receive`.
class receive_run {
 public:
  receive_run(receive_arguments const& arguments, std::vector<received_version>& received)
      : arguments_(arguments)
      , received_(received)
      , watch_(arguments.quiet)
      , window_(arguments.where)
      , timeline_(trace_of(arguments), "ropeway receive, as " + arguments.name)
      , watchers_({&watch_, timeline_.watching()})
      , receiver_(loop_.get_executor(), options_for(arguments, watchers_)) {}

  /// The signal that ended it, or 0. What was received by then stands in the list it was given.
  int run() {
    int const signal = run_until_signal(loop_, follow(), receiver_.close());
    timeline_.save();
    return signal;
  }

 private:
  awaitable<void> follow() {
    std::string given_up;
    watch_.line("waiting for the sender at " + arguments_.socket);
    co_await receiver_.connect(arguments_.socket);
    watch_.line("connected to " + arguments_.socket);
    while (!arguments_.versions || received_.size() < *arguments_.versions) {
      auto update = co_await receiver_.next_update();
      if (!update) break;
      make_room(*update);
      received_version entry;
      bool whole = false;
      try {
        entry.report = co_await update->load_into(into_);
        whole = true;
      } catch (transfer_error const& error) {
        // The sender took one version back; the next may come.
        if (error.code() != errc::peer_aborted) throw;
        given_up = error.what();
      }
      if (!whole) {
        watch_.line("version " + std::to_string(update->version()) + " was given up: " + given_up);
        continue;
      }
      if (arguments_.with_digest) {
        std::function<void(std::atomic<bool> const&)> work = [&](std::atomic<bool> const& stop) {
          entry.digest = digest(weights_, window_, stop);
        };
        co_await in_background(pool_, std::move(work));
      }
      tell(entry);
      received_.push_back(std::move(entry));
    }
    // The words are for whoever asked for more than came.
    if (received_.size() < arguments_.versions.value_or(1))
      throw transfer_error(errc::peer_gone,
                           "the sender said goodbye after " + std::to_string(received_.size()) + " of " +
                               std::to_string(arguments_.versions.value_or(1)) + " version(s)" +
                               (given_up.empty() ? "" : "; before: " + given_up));
    if (!arguments_.out) co_return;
    std::function<void(std::atomic<bool> const&)> work = [this](std::atomic<bool> const& stop) {
      write_out(stop);
    };
    co_await in_background(pool_, std::move(work));
  }

  /// Allocates for a layout that is new; later versions are loaded where the first one is.
  void make_room(update& offered) {
    if (into_.size() > 0 && weights_.fits(offered.tensors())) return;
    try {
      into_ = destinations();
      weights_ = weights();
      weights_ = weights(offered.tensors(), arguments_.where);
      for (auto const& view : weights_.mutable_views()) into_.add(view);
    } catch (std::exception const& error) {
      offered.refuse(error.what());
      throw;
    }
  }

  void write_out(std::atomic<bool> const& stop) {
    if (into_.torn())
      throw transfer_error(errc::torn,
                           arguments_.out->string() +
                               " was not written: the last version was given up half-way; ask for it again");
    std::vector<tensor_info> infos;
    for (auto const& tensor : weights_.entries()) infos.push_back(tensor.info);
    // Loaders of the transformers family insist on this word; it says nothing about the bytes.
    checkpoint_metadata const metadata{{"format", "pt"}};
    checkpoint_writer writer(*arguments_.out, infos, metadata);
    auto const total = weights_.total_bytes();
    std::uint64_t done = 0;
    for (std::size_t i = 0; i < infos.size(); ++i) {
      auto const& tensor = weights_.entries()[i];
      std::uint64_t at = 0;
      window_.read(tensor.data, tensor.bytes, [&](std::span<std::byte const> piece) {
        if (stop) throw transfer_error(asio::error::operation_aborted, "interrupted");
        writer.write(i, at, piece);
        at += piece.size();
        done += piece.size();
        watch_.bar("writing", done, total);
      });
    }
    writer.commit();
    watch_.end_bar();
    watch_.line("wrote " + arguments_.out->string());
  }

  void tell(received_version const& entry) {
    auto const& report = entry.report;
    watch_.line("version " + std::to_string(report.version) + ": " + size_text(report.bytes) + " in " +
                std::to_string(report.buckets) + " bucket(s) in " + time_text(report.total) + ", " +
                rate_text(report.bytes, report.total));
  }

  receive_arguments const& arguments_;
  std::vector<received_version>& received_;
  progress watch_;
  host_window window_;
  timeline timeline_;
  observers watchers_;
  weights weights_;
  destinations into_;
  asio::io_context loop_{1};
  asio::thread_pool pool_{1};
  receiver receiver_;
};

boost::json::object json_report(receive_arguments const& arguments,
                                std::vector<received_version> const& received, bool written) {
  boost::json::object out;
  out["command"] = "receive";
  out["name"] = json_text(arguments.name);
  out["socket"] = json_text(arguments.socket);
  out["device"] = to_string(arguments.where);
  boost::json::array versions;
  for (auto const& entry : received) versions.push_back(to_json(entry.report, entry.digest));
  out["versions"] = std::move(versions);
  out["out"] = written ? boost::json::value(json_text(arguments.out->string())) : boost::json::value(nullptr);
  return out;
}

void print_table(std::ostream& out, std::vector<received_version> const& received) {
  if (received.empty()) return;
  table rows({">version", "route", ">tensors", ">buckets", ">size", ">time", ">rate", "digest"});
  for (auto const& [report, hash] : received)
    rows.add({std::to_string(report.version), std::string(name(report.way)), std::to_string(report.tensors),
              std::to_string(report.buckets), size_text(report.bytes), time_text(report.total),
              rate_text(report.bytes, report.total), hash});
  rows.print(out);
  out.flush();
}

} // namespace

int receive(receive_arguments const& arguments) {
  std::vector<received_version> received;
  auto const run = [&] { return receive_run(arguments, received).run(); };
  ending const end = carry_out(run);
  if (arguments.json)
    print_report(std::cout, json_report(arguments, received, end.status == 0 && arguments.out), end.status,
                 end.error);
  else
    print_table(std::cout, received);
  return say(end);
}

} // namespace ropeway::cli
