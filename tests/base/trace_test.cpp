// The timeline that other programs read. Part of ropeway; Apache-2.0.
#include "ropeway/trace.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <csignal>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "ropeway/error.hpp"
#include "support/scratch.hpp"

using namespace ropeway;
using testing::scratch;

namespace {

std::string text_of(std::string const& path) {
  std::ifstream in(path);
  std::stringstream all;
  all << in.rdbuf();
  return std::move(all).str();
}

void write(std::string const& path, std::string_view text) { std::ofstream(path) << text; }

boost::json::array events_in(std::string const& path) {
  boost::system::error_code wrong;
  auto const parsed = boost::json::parse(text_of(path), wrong);
  REQUIRE_MESSAGE(!wrong, text_of(path));
  return parsed.as_array();
}

/// The events that are stretches of time.
std::vector<boost::json::object> stretches_in(std::string const& path) {
  std::vector<boost::json::object> found;
  for (auto const& one : events_in(path))
    if (one.at("ph").as_string() == "X") found.push_back(one.as_object());
  return found;
}

double number(boost::json::value const& of) { return of.to_number<double>(); }

stage_span span(update_stage what, int from_us, int to_us, std::string_view receiver = {}) {
  std::chrono::steady_clock::time_point const start(std::chrono::seconds(1000));
  stage_span one;
  one.what = what;
  one.version = 7;
  one.bucket = 3;
  one.bytes = 4096;
  one.receiver = receiver;
  one.began = start + std::chrono::microseconds(from_us);
  one.ended = start + std::chrono::microseconds(to_us);
  return one;
}

} // namespace

TEST_CASE("every stage has a name of its own") {
  std::set<std::string_view> names;
  for (auto const one : all_stages) names.insert(name(one));
  CHECK(names.size() == all_stages.size());
  CHECK_FALSE(names.contains("unknown"));
}

TEST_CASE("a stretch is saved with its time, its bucket and its bytes, and forgotten") {
  scratch const place;
  auto const path = place.file("trace.json");
  trace_recorder recorder("trainer \"A\"");
  recorder.update_began(7, 8192, 2);
  recorder.stage_ended(span(update_stage::pack, 10, 25));
  recorder.update_ended(7, true);
  CHECK(recorder.size() == 2);
  recorder.save(path);
  CHECK(recorder.size() == 0);

  auto const found = stretches_in(path);
  REQUIRE(found.size() == 2);
  auto const& pack = found[found[0].at("cat").as_string() == "pack" ? 0 : 1];
  auto const& whole = found[found[0].at("cat").as_string() == "pack" ? 1 : 0];
  CHECK(pack.at("name").as_string() == "pack 3");
  CHECK(number(pack.at("ts")) == doctest::Approx(1000e6 + 10));
  CHECK(number(pack.at("dur")) == doctest::Approx(15));
  CHECK(number(pack.at("pid")) > 0);
  CHECK(number(pack.at("args").at("version")) == 7);
  CHECK(number(pack.at("args").at("bucket")) == 3);
  CHECK(number(pack.at("args").at("bytes")) == 4096);
  CHECK(whole.at("name").as_string() == "version 7");
  CHECK(whole.at("args").at("committed").as_bool());
  CHECK(number(whole.at("args").at("bytes")) == 8192);
  auto const all = events_in(path);
  CHECK(all[0].at("name").as_string() == "process_name");
  CHECK(all[0].at("args").at("name").as_string() ==
        "trainer \"A\" (process " + std::to_string(getpid()) + ")");

  recorder.save(path); // adds nothing but its name
  CHECK(stretches_in(path).size() == 2);
}

TEST_CASE("stretches of one line never overlap") {
  scratch const place;
  auto const path = place.file("trace.json");
  trace_recorder recorder("server");
  // In the order of their ends, as they are heard.
  for (auto const& [from, to] : {std::pair(0, 10), {5, 20}, {20, 30}, {7, 40}, {30, 50}})
    recorder.stage_ended(span(update_stage::load, from, to));
  recorder.stage_ended(span(update_stage::wait, 0, 50));
  recorder.stage_ended(span(update_stage::load, 0, 50, "other \xff\n"));
  recorder.save(path);
  std::map<std::int64_t, std::vector<std::pair<double, double>>> lines;
  auto const found = stretches_in(path);
  for (auto const& one : found)
    lines[one.at("tid").as_int64()].emplace_back(number(one.at("ts")),
                                                 number(one.at("ts")) + number(one.at("dur")));
  CHECK(lines.size() == 5); // three of load, one of wait, one of the receiver
  auto const told = std::count_if(found.begin(), found.end(), [](auto const& one) {
    auto const& args = one.at("args").as_object();
    return args.contains("receiver") && args.at("receiver") == "other \xef\xbf\xbd\n";
  });
  CHECK(told == 1);
  for (auto& [line, stretches] : lines) {
    std::sort(stretches.begin(), stretches.end());
    for (std::size_t i = 1; i < stretches.size(); ++i)
      CHECK(stretches[i].first >= doctest::Approx(stretches[i - 1].second).epsilon(1e-12));
  }
}

TEST_CASE("several processes, or one several times, share a file") {
  scratch const place;
  auto const path = place.file("trace.json");
  std::vector<std::thread> all;
  for (int i = 0; i < 4; ++i)
    all.emplace_back([&path, i] {
      trace_recorder recorder("process " + std::to_string(i));
      for (int k = 0; k < 50; ++k) {
        recorder.stage_ended(span(update_stage::pack, 10 * k, 10 * k + 5));
        recorder.save(path);
      }
    });
  for (auto& one : all) one.join();
  CHECK(stretches_in(path).size() == 200);

  // What is saved later may have begun earlier, and other stages may come first. A line keeps its meaning.
  trace_recorder recorder("again");
  recorder.stage_ended(span(update_stage::announce, 0, 10));
  recorder.stage_ended(span(update_stage::pack, 10, 40));
  recorder.save(path);
  recorder.stage_ended(span(update_stage::load, 20, 30));
  recorder.stage_ended(span(update_stage::pack, 30, 50));
  recorder.stage_ended(span(update_stage::announce, 60, 70));
  recorder.save(path);
  std::map<std::pair<std::int64_t, std::int64_t>, std::string> names;
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::pair<double, double>>> lines;
  for (auto const& one : events_in(path)) {
    std::pair const line(one.at("pid").as_int64(), one.at("tid").as_int64());
    if (one.at("ph").as_string() == "X") {
      CHECK(names[line].starts_with(std::string(one.at("cat").as_string())));
      lines[line].emplace_back(number(one.at("ts")), number(one.at("ts")) + number(one.at("dur")));
    } else if (one.at("name").as_string() == "thread_name") {
      auto const name = std::string(one.at("args").at("name").as_string());
      CHECK(names.emplace(line, name).first->second == name);
    }
  }
  std::set<std::int64_t> processes;
  for (auto& [line, stretches] : lines) {
    processes.insert(line.first);
    std::sort(stretches.begin(), stretches.end());
    for (std::size_t i = 1; i < stretches.size(); ++i)
      CHECK(stretches[i].first >= doctest::Approx(stretches[i - 1].second).epsilon(1e-12));
  }
  CHECK(processes.size() == 5);
}

TEST_CASE("a disk that is full costs nobody the trace that is there") {
  scratch const place;
  auto const path = place.file("trace.json");
  trace_recorder recorder("trainer");
  recorder.stage_ended(span(update_stage::pack, 0, 5));
  recorder.save(path);
  for (int i = 1; i < 2000; ++i) recorder.stage_ended(span(update_stage::pack, 10 * i, 10 * i + 5));
  auto const size = static_cast<rlim_t>(text_of(path).size());
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  auto const handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit const little{size + 1000, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &little) == 0);
  CHECK_THROWS_AS(recorder.save(path), transfer_error);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK(stretches_in(path).size() == 1);
  CHECK(recorder.size() == 1999);
  recorder.save(path);
  CHECK(stretches_in(path).size() == 2000);
}

TEST_CASE("what is no trace is left alone, and nothing is forgotten") {
  scratch const place;
  auto const path = place.file("notes.txt");
  trace_recorder recorder("trainer");
  recorder.stage_ended(span(update_stage::pack, 0, 5));
  auto const refused = [&](std::string const& at) {
    try {
      recorder.save(at);
    } catch (transfer_error const& error) { return error.code(); }
    return std::error_code();
  };
  for (std::string_view const text :
       {"dear diary", "[", "[]\n", "[\n", "[\n1,\n2\n]\n", "{\"traceEvents\":[]}\n]\n", "\n]\n"}) {
    write(path, text);
    INFO(std::string(text));
    CHECK(refused(path) == make_error_code(errc::bad_path));
    CHECK(text_of(path) == text);
  }
  REQUIRE(::mkfifo(place.file("pipe").c_str(), 0600) == 0);
  CHECK(refused(place.file("pipe")) == make_error_code(errc::bad_path));
  ::unlink(place.file("pipe").c_str());
  CHECK(refused(place.file("missing/trace.json")) == std::errc::no_such_file_or_directory);
  CHECK(refused(place.file(".")) == std::errc::is_a_directory);
  CHECK(recorder.size() == 1);
  ::unlink(path.c_str());
  recorder.save(path);
  CHECK(stretches_in(path).size() == 1);
}

TEST_CASE("what is beyond the limit is counted and left out") {
  scratch const place;
  trace_recorder recorder("server", 3);
  for (int i = 0; i < 5; ++i) recorder.stage_ended(span(update_stage::load, 10 * i, 10 * i + 5));
  CHECK(recorder.size() == 3);
  CHECK(recorder.left_out() == 2);
  recorder.save(place.file("trace.json"));
  CHECK(recorder.left_out() == 0);
  CHECK(stretches_in(place.file("trace.json")).size() == 3);
}

TEST_CASE("several observers all hear everything") {
  scratch const place;
  trace_recorder one("one"), two("two");
  observers both{&one, nullptr, &two};
  both.update_began(1, 2, 3);
  both.stage_ended(span(update_stage::commit, 0, 1));
  both.update_ended(1, true);
  CHECK(one.size() == 2);
  CHECK(two.size() == 2);
}
