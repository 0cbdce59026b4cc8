// The parts of the program, one by one. Part of ropeway; Apache-2.0.
#include <doctest/doctest.h>

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <boost/json/array.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "cli/digest.hpp"
#include "cli/exit_code.hpp"
#include "cli/findings.hpp"
#include "cli/quantity.hpp"
#include "cli/report_json.hpp"
#include "cli/screen.hpp"
#include "cli/table.hpp"
#include "cli/trial.hpp"
#include "cli/versions.hpp"
#include "ropeway/error.hpp"
#include "support/scratch.hpp"

using namespace ropeway;
using namespace ropeway::cli;

TEST_CASE(
    "reports in JSON have each receiver's own bytes and reason, and why it did not commit apart from it") {
  send_report sent;
  sent.bytes = 1000;
  sent.receivers.resize(2);
  auto &whole = sent.receivers[0], &none = sent.receivers[1];
  whole.what = outcome::committed;
  whole.way = route::mapped;
  whole.copied = 250;
  none.what = outcome::failed;
  none.error = make_error_code(errc::loader_failed);
  none.text = "no room";
  none.way = route::host;
  none.route_reason = "through the ring, because it can't map the tensors";
  auto const out = to_json(sent, {});
  auto const& all = out.at("receivers").as_array();
  CHECK(out.at("bytes") == 1000);
  CHECK(all.at(0).at("copied") == 250);
  CHECK(all.at(0).at("route") == "mapped");
  CHECK(all.at(0).at("route_reason").is_null());
  CHECK(all.at(0).at("error").is_null());
  CHECK(all.at(1).at("copied") == 0);
  CHECK(all.at(1).at("route") == "host");
  CHECK(all.at(1).at("route_reason") == "through the ring, because it can't map the tensors");
  CHECK(all.at(1).at("text") == "no room");
  load_report loaded;
  CHECK(to_json(loaded, {}).at("route_reason").is_null());
  loaded.route_reason = "through host memory";
  CHECK(to_json(loaded, {}).at("route_reason") == "through host memory");
}

TEST_CASE("sizes are read in powers of 1024, and nothing else is taken for one") {
  CHECK(parse_size("65536") == 65536);
  CHECK(parse_size("512K") == 512u << 10);
  CHECK(parse_size("64M") == 64u << 20);
  CHECK(parse_size("64m") == 64u << 20);
  CHECK(parse_size("64MiB") == 64u << 20);
  CHECK(parse_size("64MB") == 64u << 20);
  CHECK(parse_size("1G") == 1u << 30);
  CHECK(parse_size("2T") == std::uint64_t(2) << 40);
  CHECK(parse_size("7B") == 7);
  for (char const* wrong : {"", "0", "0M", "-1", "+1", " 1", "1 M", "M", "1.5G", "64X", "64MM", "64iB",
                            "0x10", "1Mi", "18446744073709551616", "99999999999T", "17179869184G"})
    CHECK_MESSAGE(!parse_size(wrong), wrong);
  CHECK(parse_size("17179869183G") == std::uint64_t(17179869183) << 30);
}

TEST_CASE("times are read in seconds, above zero and not beyond a year") {
  CHECK(parse_seconds("30") == std::chrono::milliseconds(30000));
  CHECK(parse_seconds("0.5") == std::chrono::milliseconds(500));
  CHECK(parse_seconds("1e2") == std::chrono::milliseconds(100000));
  for (char const* wrong : {"", "0", "-1", "nan", "inf", "1s", "1e9", "0.0001", "ten"})
    CHECK_MESSAGE(!parse_seconds(wrong), wrong);
}

TEST_CASE("quantities are written for people") {
  CHECK(size_text(0) == "0 B");
  CHECK(size_text(999) == "999 B");
  CHECK(size_text(90856960) == "90.9 MB");
  CHECK(size_text(999999) == "1.0 MB");
  CHECK(size_text(UINT64_MAX) == "18446.7 PB");
  CHECK(time_text(std::chrono::milliseconds(1234)) == "1.234 s");
  CHECK(rate_text(1000000, std::chrono::milliseconds(1)) == "1.0 GB/s");
  CHECK(rate_text(1000000, std::chrono::milliseconds(0)) == "-");
}

TEST_CASE("a table is as wide as it needs to be, in characters") {
  table rows({"name", ">size"});
  rows.add({"ä", "1"});
  rows.add({"long name", "100"});
  std::ostringstream out;
  rows.print(out);
  CHECK(out.str() == "name       size\nä             1\nlong name   100\n");
}

TEST_CASE("what is drawn on a terminal takes one row a line, and one less than it has") {
  CHECK(fitted("one\ntwo\n", {}) == "one\ntwo\n");
  CHECK(fitted("", {80, 24}) == "");
  CHECK(fitted("12345\n123456\n", {5, 0}) == "12345\n12345\n");
  CHECK(fitted("äöü\n", {2, 0}) == "äö\n");
  // Wide characters are not cut in the middle.
  CHECK(fitted("漢字\n", {4, 0}) == "漢字\n");
  CHECK(fitted("漢字\n", {3, 0}) == "漢\n");
  CHECK(fitted("1\n2\n3\n", {80, 4}) == "1\n2\n3\n");
  CHECK(fitted("1\n2\n3\n4\n", {80, 4}) == "1\n2\nand 2 more line(s)\n");
  CHECK(fitted("1\n2\n3\n", {5, 2}) == "and 3\n");
  CHECK(fitted("1\n2\n", {80, 1}) == "and 2 more line(s)\n");
}

TEST_CASE("every error leads to the status that the program promises") {
  CHECK(to_exit_code(make_error_code(errc::bad_checkpoint)) == exit_code::data);
  CHECK(to_exit_code(make_error_code(errc::too_few_receivers)) == exit_code::peer);
  CHECK(to_exit_code(make_error_code(errc::connect_timeout)) == exit_code::peer);
  CHECK(to_exit_code(make_error_code(errc::peer_gone)) == exit_code::peer);
  CHECK(to_exit_code(make_error_code(errc::invalid_argument)) == exit_code::usage);
  CHECK(to_exit_code(make_error_code(errc::bad_path)) == exit_code::system);
  CHECK(to_exit_code(make_error_code(errc::no_device)) == exit_code::system);
  CHECK(to_exit_code(std::make_error_code(std::errc::permission_denied)) == exit_code::system);
}

TEST_CASE("what a peer said stands in the line once, and can't disturb a terminal") {
  transfer_error error(errc::peer_refused, "no");
  error.peer_words("not\nnow\x1b[2J");
  auto const line = judge(std::make_exception_ptr(error)).line;
  CHECK(line.find('\n') == line.npos);
  CHECK(line.find('\x1b') == line.npos);
  CHECK(line.find("not\\x0anow") != line.npos);
}

TEST_CASE("an error's own words stand without the sentence of its code, and that alone if there are none") {
  CHECK(own_words(transfer_error(errc::no_device, "no driver; use host memory")) ==
        "no driver; use host memory");
  CHECK(own_words(transfer_error(errc::no_device, "")) == make_error_code(errc::no_device).message());
}

TEST_CASE("text of any bytes becomes JSON") {
  CHECK(json_text("Größe") == "Größe");
  CHECK(json_text("a\xff\xc3") == "a\xef\xbf\xbd\xef\xbf\xbd");
  CHECK(json_text("\xed\xa0\x80") == "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
  CHECK(json_text("\xf0\x9f\x9a\xa1") == "\xf0\x9f\x9a\xa1");
}

TEST_CASE("the versions of a checkpoint differ from each other in every element, and can be undone") {
  CHECK(version_mask(1) == 0);
  std::set<int> masks;
  for (std::uint64_t version = 1; version <= 256; ++version) masks.insert(version_mask(version));
  CHECK(masks.size() == 256);
  for (std::uint32_t const element : {1u, 2u, 4u, 8u}) {
    std::array<std::byte, 29> memory{};
    change_elements(memory, element, 0x5a);
    for (std::size_t i = 0; i < memory.size(); ++i)
      CHECK(memory[i] == (i % element == 0 ? std::byte{0x5a} : std::byte{0}));
  }
  std::vector<tensor_info> const infos{
      {"f", dtype::f32, {3, 5}}, {"b", dtype::bf16, {7}}, {"e", dtype::u8, {0}}, {"i", dtype::i64, {2}}};
  weights const held(infos, device::host());
  host_window window(device::host());
  std::atomic<bool> const stop{false};
  std::set<std::string> digests{digest(held, window, stop)};
  auto const first = *digests.begin();
  for (std::uint64_t version = 2; version <= 5; ++version) {
    change_version(held, window, version - 1, version, stop);
    digests.insert(digest(held, window, stop));
  }
  CHECK(digests.size() == 5);
  change_version(held, window, 5, 1, stop);
  CHECK(digest(held, window, stop) == first);
}

TEST_CASE("a digest tells names, dtypes, shapes and bytes apart, and is the same in any order") {
  host_window window(device::host());
  std::atomic<bool> const stop{false};
  auto const of = [&](std::vector<tensor_info> infos) {
    return digest(weights(infos, device::host()), window, stop);
  };
  std::set<std::string> const digests{
      of({}),
      of({{"a", dtype::f32, {4}}}),
      of({{"b", dtype::f32, {4}}}),
      of({{"a", dtype::i32, {4}}}),
      of({{"a", dtype::f32, {2, 2}}}),
      of({{"a", dtype::f32, {4}}, {"b", dtype::u8, {0}}}),
      of({{"b", dtype::u8, {0}}, {"a", dtype::f32, {4}}}), // as before
  };
  CHECK(digests.size() == 6);
  for (auto const& one : digests) CHECK(one.size() == 32);
}

TEST_CASE("a digest that is stopped ends with operation_aborted") {
  host_window window(device::host());
  std::atomic<bool> const stop{true};
  std::vector<tensor_info> const infos{{"a", dtype::f32, {4}}};
  weights const held(infos, device::host());
  CHECK_THROWS_AS(digest(held, window, stop), transfer_error);
}

TEST_CASE("weights lie apart, aligned, and know what they are") {
  std::vector<tensor_info> const infos{{"a", dtype::u8, {3}}, {"b", dtype::f64, {2}}, {"c", dtype::f32, {0}}};
  weights const held(infos, device::host());
  CHECK(held.total_bytes() == 19);
  CHECK(held.fits(infos));
  CHECK(!held.fits(std::span(infos).first(2)));
  auto const views = held.views();
  for (auto const& view : views) CHECK(reinterpret_cast<std::uintptr_t>(view.data()) % 256 == 0);
  CHECK(views[1].data() >= views[0].data() + 3);
}

TEST_CASE("the doctor tells machines apart, and says what to change") {
  using level = finding::level;
  CHECK(about_descriptors(1024).how == level::good);
  CHECK(about_descriptors(UINT64_MAX).said == "no limit");
  CHECK(about_descriptors(64).how == level::hint);
  CHECK(about_descriptors(64).advice.find("RLIMIT_NOFILE") != std::string::npos);
  CHECK(about_memory(std::uint64_t(1) << 34).how == level::good);
  CHECK(about_memory(std::uint64_t(1) << 26).how == level::hint);
  CHECK(about_locked_memory(65536, "5.10.0-28-amd64").how == level::hint);
  CHECK(about_locked_memory(65536, "5.12.1").how == level::good);
  CHECK(about_locked_memory(65536, "6.1.0").how == level::good);
  CHECK(about_locked_memory(UINT64_MAX, "4.19").how == level::good);
  CHECK(about_io_uring(true, 0, {}).how == level::good);
  CHECK(about_io_uring(true, EPERM, 2).advice.find("kernel.io_uring_disabled is 2") != std::string::npos);
  CHECK(about_io_uring(true, EPERM, 0).advice.find("seccomp") != std::string::npos);
  CHECK(about_io_uring(true, ENOSYS, {}).how == level::hint);
  CHECK(about_io_uring(false, 0, {}).how == level::hint);
  CHECK(about_io_uring(false, EPERM, {}).advice.find("liburing") != std::string::npos);
  CHECK(about_memfd(0).how == level::good);
  CHECK(about_memfd(EPERM).how == level::bad);
  CHECK(about_peer_watch(0, 0).how == level::good);
  CHECK(about_peer_watch(ENOPROTOOPT, 0).how == level::good);
  CHECK(about_peer_watch(ENOPROTOOPT, EPERM).how == level::hint);
  CHECK(about_container({}).advice.empty());
  CHECK(about_container({"/.dockerenv", "$container"}).said.find("/.dockerenv, $container") !=
        std::string::npos);
  CHECK(about_dev_shm({}).said.find("not there") == 0);
  CHECK(about_connections(nullptr, true).how == level::good);
  CHECK(about_connections("1", false).how == level::good);
  CHECK(about_connections("1", true).how == level::hint);
  CHECK(about_connections("8", true).how == level::good);
  for (auto const& one : look_around("", false, true))
    CHECK_MESSAGE(one.how != level::bad, one.about << ": " << one.said);
}

TEST_CASE("a trial whose receiver dies ends with what that one said last") {
  testing::scratch const place;
  trial what;
  what.bytes = what.bucket_bytes = 65536;
  what.program = place.file("program");
  std::ofstream(what.program) << "#!/bin/sh\necho a warning >&2\necho ropeway: no room for it >&2\nexit 5\n";
  REQUIRE(::chmod(what.program.c_str(), 0700) == 0);
  CHECK(try_out(what).error == "no room for it");
  what.program = "/bin/false";
  CHECK(try_out(what).error == "the receiving process ended without a word");
  what.program = place.file("nothing");
  CHECK(try_out(what).error.find("no second process can be started") != std::string::npos);
}

TEST_CASE("the doctor looks at a socket's path and changes nothing") {
  using level = finding::level;
  testing::scratch const directory;
  CHECK(about_socket(directory.file("free.sock")).said.find("is free") != std::string::npos);
  CHECK(about_socket(directory.file("new/weights.sock")).how == level::good);
  CHECK(::access(directory.file("new").c_str(), F_OK) != 0);
  auto const missing = about_socket(directory.file("not/there/weights.sock"));
  CHECK(missing.how == level::bad);
  CHECK(missing.advice.find("mkdir -p -m 700") != std::string::npos);
  CHECK(about_socket(directory.file(std::string(200, 'x'))).how == level::bad);
  std::ofstream(directory.file("file")) << "no socket";
  CHECK(about_socket(directory.file("file")).how == level::bad);
  REQUIRE(::mkdir(directory.file("open").c_str(), 0700) == 0);
  REQUIRE(::chmod(directory.file("open").c_str(), 0777) == 0);
  CHECK(about_socket(directory.file("open/weights.sock")).how == level::bad);
  std::string const path = directory.file("stale.sock");
  unique_fd const socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(socket.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address) == 0);
  CHECK(about_socket(path).said.find("left over") != std::string::npos);
  REQUIRE(::listen(socket.get(), 1) == 0);
  CHECK(about_socket(path).said.find("living sender") != std::string::npos);
}
