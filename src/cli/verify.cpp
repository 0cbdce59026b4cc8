#include <algorithm>
#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <iostream>
#include <map>

#include "cli/background.hpp"
#include "cli/commands.hpp"
#include "cli/digest.hpp"
#include "cli/exit_code.hpp"
#include "cli/load.hpp"
#include "cli/quantity.hpp"
#include "cli/report_json.hpp"
#include "cli/table.hpp"
#include "cli/until_signal.hpp"
#include "ropeway/ropeway.hpp"

namespace ropeway::cli {
namespace {

/// As many differences are named.
constexpr std::size_t most_named = 20;

struct verified_file {
  std::string path;
  digest128 digest;
  std::size_t tensors = 0;
  std::uint64_t bytes = 0;
};

struct verified_receiver {
  std::string name;
  std::optional<std::uint64_t> version;
  std::optional<digest128> digest;
  std::string verdict; ///< "same", or what it is instead
};

/// What a run has found, as far as it came.
struct findings {
  std::vector<verified_file> files;
  std::optional<watched_sender> sender;
  std::vector<verified_receiver> receivers;
  std::vector<std::string> differences; ///< of files, and of them from the sender; in words

  bool agree() const {
    return differences.empty() && std::all_of(receivers.begin(), receivers.end(),
                                              [](auto const& one) { return one.verdict == "same"; });
  }
};

std::string verdict_on(watched_receiver const& one, watched_digest const& sent) {
  if (!one.version) return "holds no version";
  if (*one.version != sent.version) return "another version";
  if (!one.digest) return "not compared";
  return *one.digest == sent.digest ? "same" : "differs";
}

/// A tensor of a file, to be found by its name in another.
struct known_tensor {
  tensor_info info;
  digest128 digest;
};
using known_tensors = std::map<std::string, known_tensor, std::less<>>;

/// How tensors differ, each in words; in the order of their names.
void compare(known_tensors const& first, known_tensors const& other, std::string const& path,
             std::vector<std::string>& into) {
  for (auto const& [name, one] : first) {
    auto const at = other.find(name);
    std::string const what = "tensor " + printable(name) + " ";
    if (at == other.end())
      into.push_back(what + "is not in " + path);
    else if (at->second.info.type != one.info.type || at->second.info.dims != one.info.dims)
      into.push_back(what + "has another type or shape in " + path);
    else if (at->second.digest != one.digest)
      into.push_back(what + "has other bytes in " + path);
  }
  for (auto const& [name, one] : other)
    if (!first.contains(name)) into.push_back("tensor " + printable(name) + " is only in " + path);
}

/// One run of `ropeway verify`.
class verify_run {
 public:
  verify_run(verify_arguments const& arguments, findings& found) : arguments_(arguments), found_(found) {
    if (arguments.checkpoints.empty() && arguments.socket.empty())
      throw transfer_error(errc::invalid_argument, "name checkpoints, or a sender with --socket, or both");
  }

  /// The signal that ended it, or 0.
  int run() { return run_until_signal(loop_, verify_all(), hang_up()); }

 private:
  awaitable<void> hang_up() {
    watcher_.close();
    co_return;
  }

  awaitable<void> verify_all() {
    if (!arguments_.socket.empty()) {
      co_await watcher_.connect(arguments_.socket);
      found_.sender = co_await watcher_.look();
    }
    for (auto const& path : arguments_.checkpoints) {
      std::function<void(std::atomic<bool> const&)> work = [&](std::atomic<bool> const& stop) {
        read(path, stop);
      };
      co_await in_background(pool_, std::move(work));
    }
    if (found_.sender) look_at(*found_.sender);
  }

  void read(std::filesystem::path const& path, std::atomic<bool> const& stop) {
    auto const opened = checkpoint::open(path);
    host_window window(device::host());
    weights const held(opened, device::host());
    load(
        opened, held, window, [](std::uint64_t) {}, stop);
    auto const sums = digests(held, window, stop);
    verified_file file;
    file.path = path.string();
    file.digest = whole(held, sums);
    file.tensors = sums.size();
    file.bytes = held.total_bytes();
    known_tensors tensors;
    for (std::size_t i = 0; i < sums.size(); ++i) {
      auto const& info = held.entries()[i].info;
      tensors[info.name] = {info, sums[i]};
    }
    if (found_.files.empty())
      first_ = std::move(tensors);
    else
      compare(first_, tensors, printable(file.path), found_.differences);
    found_.files.push_back(std::move(file));
  }

  void look_at(watched_sender const& seen) {
    if (!seen.last)
      throw transfer_error(
          errc::digest_missing,
          "the sender has sent no version with digests: ropeway send --check --hold sends one, and stays");
    for (auto const& one : seen.receivers)
      found_.receivers.push_back({one.name, one.version, one.digest, verdict_on(one, *seen.last)});
    for (auto const& file : found_.files)
      if (file.digest != seen.last->digest)
        found_.differences.push_back(printable(file.path) + " is not what the sender sent as version " +
                                     std::to_string(seen.last->version));
  }

  verify_arguments const& arguments_;
  findings& found_;
  known_tensors first_; ///< of the first file
  asio::io_context loop_{1};
  asio::thread_pool pool_{1};
  watcher watcher_{loop_.get_executor(), receiver_options().connect_limit(arguments_.connect_limit)};
};

boost::json::object json_report(findings const& found) {
  boost::json::object out;
  out["command"] = "verify";
  out["agree"] = found.agree();
  boost::json::array files, receivers, differences;
  for (auto const& one : found.files) {
    boost::json::object file;
    file["path"] = json_text(one.path);
    file["tensors"] = one.tensors;
    file["bytes"] = one.bytes;
    file["digest"] = to_string(one.digest);
    files.push_back(std::move(file));
  }
  out["files"] = std::move(files);
  out["sender"] = nullptr;
  if (found.sender && found.sender->last) {
    boost::json::object sender;
    sender["id"] = found.sender->id;
    sender["version"] = found.sender->last->version;
    sender["digest"] = to_string(found.sender->last->digest);
    auto const& running = found.sender->updating;
    sender["updating"] = running ? boost::json::value(running->version) : boost::json::value(nullptr);
    out["sender"] = std::move(sender);
  }
  for (auto const& one : found.receivers) {
    boost::json::object entry;
    entry["name"] = json_text(one.name);
    entry["version"] = one.version ? boost::json::value(*one.version) : boost::json::value(nullptr);
    entry["digest"] = one.digest ? boost::json::value(to_string(*one.digest)) : boost::json::value(nullptr);
    entry["verdict"] = one.verdict;
    receivers.push_back(std::move(entry));
  }
  out["receivers"] = std::move(receivers);
  for (auto const& text : found.differences) differences.push_back(json_text(text));
  out["differences"] = std::move(differences);
  return out;
}

void print_table(std::ostream& out, findings const& found) {
  table rows({"what", ">version", "digest", "verdict"});
  for (auto const& one : found.files) rows.add({printable(one.path), "-", to_string(one.digest), ""});
  if (found.sender && found.sender->last)
    rows.add({"the sender, last with digests", std::to_string(found.sender->last->version),
              to_string(found.sender->last->digest), ""});
  for (auto const& one : found.receivers)
    rows.add({printable(one.name), one.version ? std::to_string(*one.version) : "-",
              one.digest ? to_string(*one.digest) : "-", one.verdict});
  rows.print(out);
  if (found.sender && found.receivers.empty()) out << "no receiver is connected\n";
  if (found.sender && found.sender->updating)
    out << "version " << found.sender->updating->version << " is on its way\n";
  for (std::size_t i = 0; i < std::min(found.differences.size(), most_named); ++i)
    out << found.differences[i] << '\n';
  if (found.differences.size() > most_named)
    out << "and " << found.differences.size() - most_named << " more differences\n";
  out.flush();
}

/// What did not agree, in one line; empty if all does.
std::string disagreement(findings const& found) {
  auto const others = std::count_if(found.receivers.begin(), found.receivers.end(),
                                    [](auto const& one) { return one.verdict != "same"; });
  std::string text;
  if (!found.differences.empty()) text = std::to_string(found.differences.size()) + " difference(s)";
  if (others != 0)
    text += (text.empty() ? "" : ", and ") + std::to_string(others) + " of " +
            std::to_string(found.receivers.size()) +
            " receiver(s) do not hold what was sent last with digests";
  if (others != 0 && found.sender && found.sender->updating)
    text += ": version " + std::to_string(found.sender->updating->version) +
            " is on its way, so look again when it is there";
  return text;
}

} // namespace

int verify(verify_arguments const& arguments) {
  findings found;
  ending end = carry_out([&] { return verify_run(arguments, found).run(); });
  if (end.status == 0 && !found.agree()) end = {static_cast<int>(exit_code::data), disagreement(found)};
  if (arguments.json)
    print_report(std::cout, json_report(found), end.status, end.error);
  else if (!found.files.empty() || !found.receivers.empty() || (found.sender && found.sender->last))
    print_table(std::cout, found);
  return say(end);
}

} // namespace ropeway::cli
