// From nothing to the first version: both processes started, a checkpoint read and sent. Part of ropeway;
// Apache-2.0.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <boost/json/array.hpp>
#include <filesystem>
#include <iostream>

#include "base/unique_fd.hpp"
#include "bench.hpp"
#include "cli/mapping.hpp"
#include "cli/private_directory.hpp"
#include "cli/quantity.hpp"
#include "cli/table.hpp"
#include "processes.hpp"
#include "results.hpp"
#include "ropeway/checkpoint_writer.hpp"
#include "ropeway/error.hpp"

namespace ropeway::bench {
namespace {

void write_checkpoint(plan const& of, std::string const& path) {
  model_memory const data(shapes(of), device::host(), memory_kind::region);
  fill(data, 1);
  std::vector<tensor_info> infos;
  for (auto const& one : data.entries()) infos.push_back(one.info);
  checkpoint_writer writer(path, infos, {}, checkpoint_writer::layout::as_given);
  for (std::size_t i = 0; i < infos.size(); ++i)
    writer.write(i, 0, {data.entries()[i].data, data.entries()[i].bytes});
  writer.commit();
}

/// Reads all files once, on one thread, into memory that is there already.
double read_files(checkpoint const& from) {
  constexpr std::size_t window = std::size_t(16) << 20;
  cli::mapping const into(window);
  double const start = now();
  for (auto const& path : from.files()) {
    unique_fd const file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) throw std::system_error(errno, std::system_category(), path.string());
    for (;;) {
      auto const got = ::read(file.get(), into.data(), window);
      if (got < 0) throw std::system_error(errno, std::system_category(), path.string());
      if (got == 0) break;
    }
  }
  return now() - start;
}

struct part {
  char const* name;
  std::vector<double> seconds;
};

} // namespace

void measure_cold(plan const& of) {
  cli::private_directory const place;
  plan child = of;
  child.routes = {of.routes.front()};
  child.receivers = {of.receivers.front()};
  child.warm_up = 0;
  child.repeats = 1;
  if (!std::filesystem::exists(of.model)) {
    child.model = place.file("model.safetensors");
    write_checkpoint(of, child.model);
  }
  auto const file = checkpoint::open(child.model);
  // The two sides do these at the same time; what comes later waits for both.
  std::array<part, 5> trainer{part{"process started", {}}, part{"checkpoint opened", {}},
                              part{"device and memory", {}}, part{"checkpoint read", {}},
                              part{"receiver there", {}}};
  std::array<part, 3> server{part{"process started", {}}, part{"device and memory", {}},
                             part{"connected", {}}};
  std::vector<double> whole, first_send, reading;
  route taken = route::host;
  for (std::uint64_t repeat = 0; repeat < of.warm_up + of.repeats; ++repeat) {
    child.socket = place.file("cold-" + std::to_string(repeat) + ".sock");
    double const read_s = read_files(file); // which also puts it into the page cache
    double const start = now();
    process sender_process(child, "--as-trainer");
    process receiver_process(child, "--as-receiver");
    auto const received = receiver_process.wait_words<receiver_words>();
    auto const sent = sender_process.wait_words<trainer_words>();
    sender_process.finish();
    receiver_process.finish();
    if (repeat < of.warm_up) continue;
    taken = sent.taken;
    reading.push_back(read_s);
    whole.push_back(received.committed - start);
    first_send.push_back(received.committed - sent.joined);
    double before = start;
    for (std::size_t i = 0;
         double const at : {sent.entered, sent.opened, sent.ready, sent.loaded, sent.joined}) {
      trainer[i++].seconds.push_back(at - before);
      before = at;
    }
    before = start;
    for (std::size_t i = 0; double const at : {received.entered, received.ready, received.connected}) {
      server[i++].seconds.push_back(at - before);
      before = at;
    }
  }

  auto line = line_of(of, of.where, child.receivers.front());
  line["route"] = ropeway::name(taken);
  line["route_asked"] = name(child.routes.front());
  line["memory"] = name(of.memory);
  line["tensors"] = file.tensors().size();
  line["bytes"] = file.total_bytes();
  line["warm_up"] = of.warm_up;
  line["repeats"] = of.repeats;
  line["bytes_checked"] = "all, against the checkpoint";
  line["start_to_committed"] = summary(whole, file.total_bytes());
  line["first_send"] = summary(first_send, file.total_bytes());
  line["read_once"] = summary(reading, file.total_bytes());
  auto const parts = [](auto const& of_side) {
    boost::json::object out;
    for (auto const& one : of_side) out[one.name] = median(one.seconds);
    return out;
  };
  line["trainer_median_s"] = parts(trainer);
  line["receiver_median_s"] = parts(server);
  write_line(of, line);

  std::cout << "cold, " << of.model << ": " << file.tensors().size() << " tensors, "
            << cli::size_text(file.total_bytes()) << " in the page cache, " << to_string(of.where) << " to "
            << to_string(child.receivers.front()) << ", " << ropeway::name(taken) << " route, " << of.repeats
            << " repeats after " << of.warm_up << "\n";
  cli::table rows({"what", ">median", ">min", ">max"});
  auto const row = [&](std::string const& what, std::vector<double> const& seconds) {
    rows.add({what, time_text(median(seconds)), time_text(std::ranges::min(seconds)),
              time_text(std::ranges::max(seconds))});
  };
  row("start of both processes to the first version committed", whole);
  for (auto const& one : trainer) row(std::string("  trainer: ") + one.name, one.seconds);
  for (auto const& one : server) row(std::string("  receiver: ") + one.name, one.seconds);
  row("  both there to committed", first_send);
  row("one thread reads the files once", reading);
  rows.print(std::cout);
  std::cout << std::flush;
}

} // namespace ropeway::bench
