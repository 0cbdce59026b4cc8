// The program from outside: what it does, says, leaves behind, and how it ends. Part of ropeway; Apache-2.0.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <sstream>
#include <thread>

#include "program.hpp"
#include "ropeway/checkpoint.hpp"
#include "ropeway/checkpoint_writer.hpp"
#include "support/sanitized.hpp"
#include "support/scratch.hpp"

using namespace ropeway;
using testing::ended;
using testing::program;
using testing::scratch;

namespace {

using strings = std::vector<std::string>;

std::vector<tensor_info> const small{
    {"embed.weight", dtype::f32, {1000, 33}}, {"layers.0.w", dtype::bf16, {129, 257}},
    {"layers.0.flags", dtype::boolean, {7}},  {"layers.1.scale", dtype::f16, {}},
    {"layers.1.none", dtype::i64, {0, 4}},    {"layers.1.w", dtype::u8, {70001}}};

std::byte byte_of(std::size_t tensor, std::size_t at) {
  return static_cast<std::byte>((tensor * 131 + at * 7 + at / 251) & 0xff);
}

void write_checkpoint(std::string const& path, std::vector<tensor_info> const& infos = small) {
  checkpoint_writer writer(path, infos);
  for (std::size_t i = 0; i < infos.size(); ++i) {
    std::vector<std::byte> bytes(*byte_size(infos[i].type, infos[i].dims));
    for (std::size_t at = 0; at < bytes.size(); ++at) bytes[at] = byte_of(i, at);
    writer.write(i, 0, bytes);
  }
  writer.commit();
}

/// Name, dtype, shape and bytes of each tensor, by name.
std::map<std::string, std::string> contents(std::string const& path) {
  auto const opened = checkpoint::open(path);
  checkpoint_reader reader(opened);
  std::map<std::string, std::string> out;
  for (std::size_t i = 0; i < opened.tensors().size(); ++i) {
    auto const& stored = opened.tensors()[i];
    std::vector<std::byte> bytes(stored.bytes);
    reader.read(i, 0, bytes);
    auto& text = out[stored.info.name];
    text = std::string(name(stored.info.type)) + to_string(stored.info.dims);
    text.append(reinterpret_cast<char const*>(bytes.data()), bytes.size());
  }
  return out;
}

/// It ended with this status, and said one line of complaint, which holds these words.
void check_complaint(ended const& result, int status, strings const& words) {
  INFO(result.err);
  CHECK(result.status == status);
  auto const lines = result.complaints();
  CHECK(lines.size() == 1);
  if (lines.size() != 1) return;
  for (auto const& word : words) CHECK_MESSAGE(lines.front().find(word) != std::string::npos, word);
}

boost::json::object report_of(ended const& result) {
  INFO(result.err);
  boost::system::error_code wrong;
  auto const value = boost::json::parse(result.out, wrong);
  CHECK_MESSAGE(!wrong, result.out);
  CHECK(result.out.find('\n') == result.out.size() - 1);
  return wrong ? boost::json::object() : value.as_object();
}

/// A directory in which nobody can make files, root neither.
class unwritable {
 public:
  explicit unwritable(std::string path) : path_(std::move(path)) {
    if (geteuid() != 0) {
      ::mkdir(path_.c_str(), 0500);
      return;
    }
    ::mkdir(path_.c_str(), 0700);
    mounted_ = ::mount("none", path_.c_str(), "tmpfs", MS_RDONLY, "mode=0700,size=4k") == 0;
    // Without the right to mount: procfs takes no files from anybody.
    if (!mounted_) path_ = "/proc/self";
  }
  ~unwritable() {
    if (mounted_) ::umount(path_.c_str());
  }
  std::string const& path() const { return path_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

/// A file system of so many bytes; nothing if mounting is not permitted here.
class small_disk {
 public:
  small_disk(std::string path, char const* options) : path_(std::move(path)) {
    ::mkdir(path_.c_str(), 0700);
    mounted_ = ::mount("none", path_.c_str(), "tmpfs", 0, options) == 0;
  }
  small_disk(small_disk const&) = delete;
  small_disk& operator=(small_disk const&) = delete;
  ~small_disk() {
    if (mounted_) ::umount(path_.c_str());
  }
  bool is_there() const { return mounted_; }
  bool resize(char const* options) const {
    return ::mount("none", path_.c_str(), "tmpfs", MS_REMOUNT, options) == 0;
  }
  std::string file(char const* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
  bool mounted_ = false;
};

} // namespace

TEST_CASE("two receivers get every version, and all three processes compute the same digests") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket, "--versions", "3", "--receivers", "2", "--bucket",
                  "64K", "--json"});
  program first({"receive", "--socket", socket, "--name", "first", "--json"});
  program second({"receive", "--socket", socket, "--name", "second", "--json", "--versions", "3"});
  auto const sent = sender.wait();
  auto const one = first.wait(), two = second.wait();
  CHECK(sent.status == 0);
  CHECK(one.status == 0);
  CHECK(two.status == 0);
  auto const versions = report_of(sent).at("versions").as_array();
  auto const held_one = report_of(one).at("versions").as_array();
  auto const held_two = report_of(two).at("versions").as_array();
  REQUIRE(versions.size() == 3);
  REQUIRE(held_one.size() == 3);
  REQUIRE(held_two.size() == 3);
  std::set<boost::json::string> digests;
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(versions[i].at("version") == i + 1);
    CHECK(held_one[i].at("version") == i + 1);
    CHECK(versions[i].at("digest") == held_one[i].at("digest"));
    CHECK(versions[i].at("digest") == held_two[i].at("digest"));
    CHECK(versions[i].at("tensors") == 6);
    CHECK(versions[i].at("receivers").as_array().size() == 2);
    for (auto const& receiver : versions[i].at("receivers").as_array()) {
      CHECK(receiver.at("outcome") == "committed");
      CHECK(receiver.at("route") == "host");
      CHECK(receiver.at("route_reason") ==
            "5 tensors are host memory that is not shared (see sender::share)");
      CHECK(receiver.at("copied") == versions[i].at("bytes"));
      CHECK(receiver.at("text") == "");
    }
    CHECK(held_one[i].at("route_reason") == versions[i].at("receivers").at(0).at("route_reason"));
    digests.insert(versions[i].at("digest").as_string());
  }
  CHECK(digests.size() == 3);
  CHECK(place.entries() == strings{"model.safetensors"});
}

namespace {

/// Begin and end of a stage of each bucket of a version, in a trace.
std::map<std::int64_t, std::pair<double, double>> stretches(boost::json::array const& trace,
                                                            char const* stage, std::int64_t version) {
  std::map<std::int64_t, std::pair<double, double>> found;
  for (auto const& one : trace) {
    auto const& event = one.as_object();
    if (event.at("ph") != "X" || event.at("cat") != stage) continue;
    auto const& args = event.at("args").as_object();
    if (args.at("version") != version || !args.contains("bucket")) continue;
    auto const began = event.at("ts").to_number<double>();
    auto const fresh = found.emplace(args.at("bucket").as_int64(),
                                     std::pair(began, began + event.at("dur").to_number<double>()));
    CHECK(fresh.second);
  }
  return found;
}

/// Sends four versions, and checks both sides' trace. For how many microseconds a bucket was packed while the
/// one before it was loaded.
double overlap_in_a_trace() {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  auto const trace = place.file("trace.json");
  shape const wide{testing::rounds(2048u), 1024};
  write_checkpoint(checkpoint, {{"embed", dtype::f32, wide}, {"head", dtype::f32, wide}});
  program sender({"send", checkpoint, "--socket", socket, "--versions", "4", "--bucket", "1M", "--json",
                  "--no-digest", "--trace", trace});
  program receiver({"receive", "--socket", socket, "--json", "--trace", trace});
  auto const sent = sender.wait();
  CHECK(receiver.wait().status == 0);
  REQUIRE(sent.status == 0);
  std::ifstream file(trace);
  std::string const text(std::istreambuf_iterator<char>(file), {});
  boost::system::error_code wrong;
  auto const parsed = boost::json::parse(text, wrong);
  REQUIRE_MESSAGE(!wrong, text);
  double overlap = 0;
  auto const reports = report_of(sent).at("versions").as_array();
  for (std::int64_t version = 1; version <= 4; ++version) {
    auto const& report = reports[static_cast<std::size_t>(version - 1)];
    auto const packs = stretches(parsed.as_array(), "pack", version);
    auto const loads = stretches(parsed.as_array(), "load", version);
    auto const buckets = static_cast<std::size_t>(report.at("buckets").as_int64());
    CHECK(packs.size() == buckets);
    CHECK(loads.size() == buckets);
    double packing = 0;
    for (auto const& [bucket, pack] : packs) {
      packing += pack.second - pack.first;
      if (!loads.contains(bucket)) continue;
      CHECK(pack.second <= doctest::Approx(loads.at(bucket).first).epsilon(1e-12));
      if (auto const before = loads.find(bucket - 1); before != loads.end())
        overlap += std::max(0.0, std::min(pack.second, before->second.second) -
                                     std::max(pack.first, before->second.first));
    }
    CHECK(packing == doctest::Approx(1e6 * report.at("stages").at("pack").as_double()).epsilon(0.01));
  }
  return overlap;
}

} // namespace

TEST_CASE("both sides trace into one file, on one clock: a bucket is packed while the one before is loaded") {
  double overlap = 0;
  // Two processes that share a processor, be it with others, may take turns bucket by bucket.
  for (int attempt = 0; attempt < 10 && overlap == 0; ++attempt) overlap = overlap_in_a_trace();
  if (std::thread::hardware_concurrency() > 1) CHECK(overlap > 0);
}

TEST_CASE("a --trace that can't be written is named before anything is received or sent") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  auto const never = place.file("never/trace.json");
  check_complaint(testing::run({"send", checkpoint, "--socket", socket, "--trace", checkpoint}), 5,
                  {checkpoint, "is no trace"});
  check_complaint(testing::run({"send", checkpoint, "--socket", socket, "--trace", never}), 5, {never});
  check_complaint(testing::run({"receive", "--socket", socket, "--trace", never}), 5, {never});
  // What else is wrong leaves no trace behind, and a file is not to be two things.
  auto const trace = place.file("trace.json");
  check_complaint(testing::run({"send", never, "--socket", socket, "--trace", trace}), 5, {never});
  check_complaint(testing::run({"receive", "--socket", socket, "--out", never, "--trace", trace}), 5,
                  {"never"});
  check_complaint(testing::run({"receive", "--socket", socket, "--out", trace, "--trace", trace}), 2,
                  {trace});
  CHECK(place.entries() == strings{"model.safetensors"});
  CHECK(contents(checkpoint).size() == small.size());
}

TEST_CASE("a file that was received holds the tensors that were sent, byte by byte") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock"),
             out = place.file("out.safetensors");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket, "--bucket", "64K"});
  program receiver({"receive", "--socket", socket, "--out", out});
  auto const sent = sender.wait(), received = receiver.wait();
  CHECK_MESSAGE(sent.status == 0, sent.err);
  CHECK_MESSAGE(received.status == 0, received.err);
  CHECK(contents(out) == contents(checkpoint));
  CHECK(sent.out.find("committed") != std::string::npos);
  CHECK(received.out.find("digest") != std::string::npos);
}

TEST_CASE("of several versions the file holds the last") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock"),
             out = place.file("out.safetensors");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket, "--versions", "2", "--slots", "1"});
  program receiver({"receive", "--socket", socket, "--out", out});
  CHECK(sender.wait().status == 0);
  CHECK(receiver.wait().status == 0);
  auto wanted = contents(checkpoint);
  auto const got = contents(out);
  CHECK(got != wanted);
  // Version 2: the first byte of every element, XORed with 1.
  auto& tensor = wanted.at("layers.1.w");
  for (std::size_t i = tensor.size() - 70001; i < tensor.size(); ++i)
    tensor[i] = static_cast<char>(tensor[i] ^ 1);
  CHECK(got.at("layers.1.w") == tensor);
}

TEST_CASE("a receiver that is there first waits for the sender") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program receiver({"receive", "--socket", socket, "--connect-limit", "60"});
  program sender({"send", checkpoint, "--socket", socket});
  CHECK(receiver.wait().status == 0);
  CHECK(sender.wait().status == 0);
}

TEST_CASE("without digests there are none in the report") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket, "--no-digest", "--json"});
  program receiver({"receive", "--socket", socket, "--no-digest", "--json", "--quiet"});
  auto const received = receiver.wait();
  CHECK(report_of(sender.wait()).at("versions").at(0).at("digest").is_null());
  CHECK(report_of(received).at("versions").at(0).at("digest").is_null());
  CHECK(received.err == "");
}

TEST_CASE("inspect shows every tensor, as a table and as JSON") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors");
  write_checkpoint(checkpoint);
  auto const table = testing::run({"inspect", checkpoint});
  CHECK(table.status == 0);
  for (auto const& info : small) CHECK(table.out.find(info.name) != std::string::npos);
  CHECK(table.out.find("[129, 257]") != std::string::npos);
  auto const json = report_of(testing::run({"inspect", checkpoint, "--json"}));
  CHECK(json.at("tensors").as_array().size() == small.size());
  CHECK(json.at("bytes") == 132000 + 66306 + 7 + 2 + 70001);
  CHECK(testing::run({"inspect", place.file(".")}).status == 0);
}

TEST_CASE("a file that is no safetensors, or only the beginning of one, is bad data") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), text = place.file("text"),
             socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  std::ofstream(text) << "this is a letter and no checkpoint at all\n";
  std::filesystem::resize_file(checkpoint, std::filesystem::file_size(checkpoint) - 1);
  auto const before = place.entries();
  for (auto const& file : {checkpoint, text}) {
    check_complaint(testing::run({"inspect", file}), 4, {file});
    check_complaint(testing::run({"send", file, "--socket", socket}), 4, {file});
    auto const json = testing::run({"send", file, "--socket", socket, "--json"});
    check_complaint(json, 4, {file});
    CHECK(report_of(json).at("exit") == 4);
  }
  check_complaint(testing::run({"inspect", place.file("missing")}), 5, {"missing", "No such file"});
  CHECK(place.entries() == before);
}

TEST_CASE("a socket path that is a directory is refused, and stays what it is") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), directory = place.file("d");
  write_checkpoint(checkpoint);
  ::mkdir(directory.c_str(), 0700);
  auto const before = place.entries();
  check_complaint(testing::run({"send", checkpoint, "--socket", directory}), 5, {directory});
  check_complaint(testing::run({"receive", "--socket", directory, "--connect-limit", "1"}), 5, {directory});
  CHECK(place.entries() == before);
  CHECK(std::filesystem::is_empty(directory));
}

TEST_CASE("a socket path that is too long is named as such") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors");
  write_checkpoint(checkpoint);
  check_complaint(testing::run({"send", checkpoint, "--socket", place.file(std::string(120, 'x'))}), 5,
                  {"shorter"});
}

TEST_CASE("a directory that can't be written to is named before anything is received or sent") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors");
  write_checkpoint(checkpoint);
  unwritable const closed(place.file("closed"));
  check_complaint(testing::run({"send", checkpoint, "--socket", closed.path() + "/s.sock"}), 5,
                  {closed.path()});
  check_complaint(
      testing::run({"receive", "--socket", place.file("s.sock"), "--out", closed.path() + "/o.safetensors"}),
      5, {closed.path()});
  check_complaint(testing::run({"receive", "--socket", place.file("s.sock"), "--out", place.file(".")}), 5,
                  {});
}

TEST_CASE(
    "a disk that is full is named by receive --out, which leaves nothing; with room the file is whole") {
  scratch const place;
  small_disk const disk(place.file("disk"), "mode=0700,size=64k");
  if (!disk.is_there()) {
    MESSAGE("SKIPPED: mounting is not permitted here");
    return;
  }
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock"),
             out = disk.file("out.safetensors");
  write_checkpoint(checkpoint);
  for (bool const full : {true, false}) {
    if (!full) REQUIRE(disk.resize("size=4m"));
    program sender({"send", checkpoint, "--socket", socket, "--bucket", "64K"});
    program receiver({"receive", "--socket", socket, "--out", out});
    auto const sent = sender.wait(), received = receiver.wait();
    CHECK_MESSAGE(sent.status == 0, sent.err);
    if (full) {
      check_complaint(received, 5, {"out.safetensors", "No space left on device"});
      CHECK(std::filesystem::is_empty(place.file("disk")));
    } else {
      CHECK_MESSAGE(received.status == 0, received.err);
      CHECK(contents(out) == contents(checkpoint));
    }
  }
}

TEST_CASE("a sender without receivers gives up at its deadline") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  check_complaint(testing::run({"send", checkpoint, "--socket", socket, "--wait", "0.2"}), 3, {});
  CHECK(place.entries() == strings{"model.safetensors"});
}

TEST_CASE("a receiver without a sender gives up at its deadline") {
  scratch const place;
  check_complaint(testing::run({"receive", "--socket", place.file("s.sock"), "--connect-limit", "0.2"}), 3,
                  {});
  CHECK(place.entries().empty());
}

TEST_CASE("a device that does not exist is named") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  check_complaint(testing::run({"send", checkpoint, "--socket", socket, "--device", "cuda:99"}), 5, {});
  check_complaint(testing::run({"receive", "--socket", socket, "--device", "cuda:99"}), 5, {});
  CHECK(place.entries() == strings{"model.safetensors"});
}

TEST_CASE("a sender that is killed leaves receivers with one line, and its successor takes the path over") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket, "--receivers", "2", "--wait", "60"});
  program receiver({"receive", "--socket", socket, "--out", place.file("out.safetensors")});
  sender.wait_for("joined: ");
  sender.signal(SIGKILL);
  check_complaint(receiver.wait(), 3, {});
  sender.wait();
  CHECK(!std::filesystem::exists(place.file("out.safetensors")));
  program again({"send", checkpoint, "--socket", socket});
  program later({"receive", "--socket", socket});
  CHECK(again.wait().status == 0);
  CHECK(later.wait().status == 0);
  CHECK(place.entries() == strings{"model.safetensors"});
}

TEST_CASE("a receiver that is killed ends a sender that needs it") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket, "--versions", "1000000"});
  program receiver({"receive", "--socket", socket});
  receiver.wait_for("version 3:");
  receiver.signal(SIGKILL);
  check_complaint(sender.wait(), 3, {});
  CHECK(place.entries() == strings{"model.safetensors"});
}

TEST_CASE("an interrupt ends either side in good order") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  for (int const signal : {SIGINT, SIGTERM}) {
    program sender({"send", checkpoint, "--socket", socket, "--versions", "1000000", "--json"});
    program receiver({"receive", "--socket", socket, "--json"});
    receiver.wait_for("version 2:");
    sender.signal(signal);
    auto const sent = sender.wait(), received = receiver.wait();
    check_complaint(sent, 128 + signal, {});
    CHECK(report_of(sent).at("exit") == 128 + signal);
    CHECK(received.status == 0);
  }
  program waiting({"send", checkpoint, "--socket", socket});
  waiting.wait_for("listening");
  waiting.signal(SIGTERM);
  check_complaint(waiting.wait(), 143, {});
  CHECK(place.entries() == strings{"model.safetensors"});
  program receiver({"receive", "--socket", socket, "--connect-limit", "60"});
  receiver.wait_for("waiting");
  receiver.signal(SIGINT);
  check_complaint(receiver.wait(), 130, {});
}

TEST_CASE("a receiver that got what it asked for leaves, and the sender says that it missed it") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket, "--versions", "3", "--json"});
  program receiver({"receive", "--socket", socket, "--versions", "2"});
  CHECK(receiver.wait().status == 0);
  auto const sent = sender.wait();
  check_complaint(sent, 3, {});
  CHECK(report_of(sent).at("versions").as_array().size() == 3);
}

TEST_CASE("fewer versions than asked for is the peer's fault") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket});
  program receiver({"receive", "--socket", socket, "--versions", "2"});
  CHECK(sender.wait().status == 0);
  check_complaint(receiver.wait(), 3, {"1 of 2"});
}

TEST_CASE("a command line that makes no sense is a usage error in one line") {
  scratch const place;
  auto const socket = place.file("s.sock");
  for (auto const& words : std::vector<strings>{{},
                                                {"fly"},
                                                {"send"},
                                                {"send", "x"},
                                                {"receive"},
                                                {"inspect"},
                                                {"send", "x", "--socket", socket, "--bucket", "much"},
                                                {"send", "x", "--socket", socket, "--slots", "0"},
                                                {"send", "x", "--socket", socket, "--versions", "0"},
                                                {"send", "x", "--socket", socket, "--device", "abacus"},
                                                {"receive", "--socket", socket, "--connect-limit", "-1"},
                                                {"receive", "--socket", socket, "--nonsense"}}) {
    auto const result = testing::run(words);
    check_complaint(result, 2, {});
    CHECK(result.out == "");
  }
  check_complaint(testing::run({"fly"}), 2, {"there is no command fly"});
  CHECK(testing::run({"--version"}).status == 0);
}

TEST_CASE("every command has examples and the exit statuses in its help") {
  for (std::string const command : {"", "send", "receive", "inspect", "watch", "verify", "doctor", "bench"}) {
    auto const help = testing::run(command.empty() ? strings{"--help"} : strings{command, "--help"});
    INFO(command, help.out);
    CHECK(help.status == 0);
    CHECK(help.out.find("\n  ropeway " + command) != std::string::npos);
    CHECK(help.out.find("Exit status: 0 done") != std::string::npos);
    CHECK(help.out.find("143 after a request to terminate") != std::string::npos);
  }
}

TEST_CASE("watch shows a sender and its receivers, once or again and again") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  check_complaint(testing::run({"watch", "--socket", socket, "--once", "--connect-limit", "0.05"}), 3,
                  {socket});
  program sender({"send", checkpoint, "--socket", socket, "--receivers", "2", "--json"});
  program receiver({"receive", "--socket", socket, "--name", "first", "--json"});
  receiver.wait_for("connected");
  // Once is once: long before the sender would hang up on who asks no more.
  auto const once = program({"watch", "--socket", socket, "--once", "--json"}).wait(std::chrono::seconds(8));
  CHECK(once.status == 0);
  auto const seen = boost::json::parse(once.out).as_object();
  CHECK(seen.at("updating").is_null());
  REQUIRE(seen.at("receivers").as_array().size() == 1);
  auto const& one = seen.at("receivers").as_array()[0];
  CHECK(one.at("name").as_string().starts_with("first"));
  CHECK(one.at("doing") == "idle");
  CHECK(one.at("version").is_null());

  program watching({"watch", "--socket", socket, "--interval", "0.01"});
  watching.wait_for_output("first", 3);
  // The sender ends; whoever watches waits for the next one.
  program second({"receive", "--socket", socket, "--json"});
  CHECK(second.wait().status == 0);
  CHECK(receiver.wait().status == 0);
  CHECK(sender.wait().status == 0);
  watching.wait_for_output("waiting for another one");
  program successor({"send", checkpoint, "--socket", socket, "--receivers", "1", "--json", "--wait", "60"});
  watching.wait_for_output("0 receiver(s), no update runs");
  watching.signal(SIGINT);
  auto const end = watching.wait(std::chrono::seconds(8));
  INFO(end.out);
  CHECK(end.status == 0);
  CHECK(end.complaints().empty());
  successor.signal(SIGINT);
  CHECK(successor.wait().status == 130);
}

namespace {

/// A terminal of so many columns and rows, and what was written to it.
class terminal {
 public:
  terminal(unsigned short columns, unsigned short rows)
      : outer_(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    REQUIRE(::grantpt(outer_.get()) == 0);
    REQUIRE(::unlockpt(outer_.get()) == 0);
    inner_ = unique_fd(::open(::ptsname(outer_.get()), O_RDWR | O_NOCTTY | O_CLOEXEC));
    winsize const size{rows, columns, 0, 0};
    REQUIRE(::ioctl(inner_.get(), TIOCSWINSZ, &size) == 0);
  }
  int inner() const { return inner_.get(); }
  /// All of it, once it holds `text` so many times.
  std::string const& read_until(std::string const& text, int times) {
    auto const end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    for (;;) {
      int found = 0;
      for (auto at = said_.find(text); at != said_.npos; at = said_.find(text, at + text.size())) ++found;
      if (found >= times) return said_;
      pollfd more{outer_.get(), POLLIN, 0};
      if (std::chrono::steady_clock::now() > end) throw std::runtime_error("it never said it: " + said_);
      if (::poll(&more, 1, 1000) <= 0) continue;
      std::array<char, 4096> part{};
      auto const got = ::read(outer_.get(), part.data(), part.size());
      if (got <= 0) throw std::runtime_error("the terminal is gone: " + said_);
      said_.append(part.data(), static_cast<std::size_t>(got));
    }
  }

 private:
  unique_fd outer_, inner_;
  std::string said_;
};

} // namespace

TEST_CASE("watch draws over exactly what it has drawn, also on a small terminal") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket, "--receivers", "5", "--json"});
  std::vector<std::unique_ptr<program>> receivers;
  for (char const* name : {"first", "second", "third", "fourth"}) {
    receivers.push_back(std::make_unique<program>(strings{"receive", "--socket", socket, "--name", name}));
    receivers.back()->wait_for("connected");
  }
  terminal small_one(50, 5);
  program watching({"watch", "--socket", socket, "--interval", "0.01"}, small_one.inner());
  std::string const up = "\x1b[";
  auto text = small_one.read_until("A\x1b[J", 4);
  // Drawn, and drawn over; the last drawing may not be all there yet.
  for (int drawing = 0; drawing < 4; ++drawing) {
    auto const end = text.find(up);
    REQUIRE(end != text.npos);
    auto const drawn = text.substr(0, end);
    text.erase(0, end + up.size());
    auto const lines = std::count(drawn.begin(), drawn.end(), '\n');
    INFO(drawn);
    CHECK(lines == 4);
    CHECK(text.starts_with(std::to_string(lines) + "A\x1b[J"));
    text.erase(0, text.find('J') + 1);
    CHECK(drawn.find("and 3 more line(s)") != drawn.npos);
    std::istringstream in(drawn);
    for (std::string line; std::getline(in, line);) CHECK(line.size() <= 50 + 1); // and a carriage return
  }
  watching.signal(SIGINT);
  CHECK(watching.wait().status == 0);
}

TEST_CASE("bench shows on a terminal what it is at, and takes it away before its table") {
  terminal screen(120, 20);
  program bench({"bench", "--size", "4M", "--bucket", "1M", "--repeats", "2"}, screen.inner(), STDERR_FILENO);
  auto const text = screen.read_until("\r\x1b[K", 1); // the end of the last bar
  CHECK(text.find("host to host [") != text.npos);
  CHECK(text.find("host to host, mapped [") != text.npos);
  CHECK(text.find("0 %  0 B of ") != text.npos);
  auto const end = bench.wait();
  CHECK(end.status == 0);
  CHECK(end.out.find("memcpy") != end.out.npos);
  CHECK(end.out.find("\r") == end.out.npos);
}

TEST_CASE("watch --json says in a line of its own that the sender is gone") {
  scratch const place;
  auto const checkpoint = place.file("model.safetensors"), socket = place.file("s.sock");
  write_checkpoint(checkpoint);
  program sender({"send", checkpoint, "--socket", socket});
  sender.wait_for("listening");
  program watching({"watch", "--socket", socket, "--interval", "0.01", "--json"});
  watching.wait_for_output("\"receivers\":[]");
  sender.signal(SIGINT);
  CHECK(sender.wait().status == 130);
  watching.wait_for_output("\"gone\":", 1, std::chrono::seconds(20));
  watching.signal(SIGINT);
  auto const end = watching.wait();
  CHECK(end.status == 0);
  std::istringstream lines(end.out);
  int gone = 0;
  for (std::string line; std::getline(lines, line);) {
    auto const look = boost::json::parse(line).as_object();
    CHECK(look.at("receivers").as_array().empty());
    if (!look.contains("gone")) continue;
    ++gone;
    CHECK(look.at("sender").is_null());
    CHECK(!look.at("gone").as_string().empty());
  }
  CHECK(gone == 1);
}

TEST_CASE("doctor finds nothing bad here, and a transfer that works") {
  auto const looked = testing::run({"doctor", "--json"});
  CHECK_MESSAGE(looked.status == 0, looked.err);
  auto const findings = boost::json::parse(looked.out).at("findings").as_array();
  bool tried = false;
  for (auto const& one : findings) {
    CHECK(one.at("level").as_string() != "bad");
    if (one.at("about").as_string() == "CUDA")
      CHECK(!one.at("said").as_string().ends_with(make_error_code(errc::no_device).message()));
    if (one.at("about").as_string() == "host to host")
      tried = one.at("said").as_string().starts_with("host route");
  }
  CHECK(tried);
  auto const words = testing::run({"doctor", "--no-trials", "--socket", "/proc/weights.sock"});
  CHECK(words.status == 5);
  CHECK(words.out.find("bad   socket: ") != std::string::npos);
  CHECK(words.complaints().size() == 1);
}

TEST_CASE("bench times every route that there is from host memory to host memory") {
  auto const timed = testing::run({"bench", "--size", "4M", "--bucket", "1M", "--repeats", "2", "--json"});
  CHECK_MESSAGE(timed.status == 0, timed.err);
  auto const cases = report_of(timed).at("cases").as_array();
  strings routes, asked;
  for (auto const& one : cases) {
    if (one.at("from") != "host" || one.at("to") != "host") continue;
    routes.emplace_back(one.at("route").as_string());
    asked.emplace_back(one.at("asked").as_string());
    CHECK(one.at("median_seconds").as_double() > 0);
  }
  CHECK(routes == strings{"host", "mapped"});
  CHECK(asked == strings{"automatic", "mapped"});
  auto const words = testing::run({"bench", "--size", "4M", "--bucket", "1M", "--repeats", "1"});
  CHECK(words.out.find("mapped  ") != std::string::npos);
  CHECK(words.out.find("every route copies twice") == std::string::npos);
  // It would touch it all.
  check_complaint(testing::run({"bench", "--size", "4000G"}), 5, {"are available", "--size"});
}
