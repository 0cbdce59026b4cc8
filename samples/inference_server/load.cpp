// Asks the inference server for embeddings over many connections while a trainer swaps its weights, and
// checks every answer.
//
//   inference_load variant CHECKPOINT OTHER NUMBER
//   inference_load check PORT CONNECTIONS VERSIONS HEADS VOCABULARY CHECKPOINT...
//
// `variant` writes a checkpoint of the same tensors with other values, which NUMBER tells apart. `check`
// expects versions 1, 2, ... to be the checkpoints in turn (take three: a server has two sets of weights, and
// with two in turn each set would always hold the same): each answer must have status 200, name one version,
// and hold what that version's weights make of its texts, computed here beforehand. It asks until version
// VERSIONS is served, then as long again without swaps, and prints the latencies of both. Status 1 if a
// request failed, an answer was wrong, or none came before the last version. A sample of ropeway; Apache-2.0.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <mutex>
#include <ropeway/checkpoint.hpp>
#include <ropeway/checkpoint_writer.hpp>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "bert.hpp"
#include "http.hpp"
#include "tokenizer.hpp"

namespace {

namespace json = boost::json;
using steady = std::chrono::steady_clock;

constexpr float tolerance = 1e-5F;
constexpr std::size_t texts_of_one = 2; // so that an answer could mix versions

std::vector<std::string> const texts{
    "A trainer sends new weights while the server answers.",
    "The cat sat on the mat.",
    "How do I reset my password?",
    "Rain is expected in the north by the evening.",
    "The recipe asks for two eggs and a cup of flour.",
    "Compilers turn text into machine code.",
    "She bought a ticket for the night train to Vienna.",
    "Stocks fell for the third day in a row.",
};

std::vector<ropeway::tensor_info> infos_of(ropeway::checkpoint const& stored) {
  std::vector<ropeway::tensor_info> infos;
  for (auto const& each : stored.tensors()) infos.push_back(each.info);
  return infos;
}

bert load(std::string const& path, std::size_t heads) {
  auto const stored = ropeway::checkpoint::open(path);
  bert model(bert_layout::of(infos_of(stored), heads));
  ropeway::read_into(stored, model.mutable_views());
  return model;
}

void write_variant(std::string const& from, std::string const& to, unsigned number) {
  auto const stored = ropeway::checkpoint::open(from);
  auto const infos = infos_of(stored);
  ropeway::checkpoint_writer into(to, infos);
  ropeway::checkpoint_reader reader(stored);
  for (std::size_t i = 0; i < infos.size(); ++i) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(stored.tensors()[i].bytes));
    reader.read(i, 0, bytes);
    if (infos[i].type == ropeway::dtype::f32) {
      std::span const values(reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float));
      for (std::size_t k = 0; k < values.size(); ++k)
        values[k] *= 1.0F + 0.05F * static_cast<float>(number) * (k % 2 == 0 ? -1.0F : 1.0F);
    }
    into.write(i, 0, bytes);
  }
  into.commit();
}

class client {
 public:
  explicit client(std::uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int const on = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (socket_ < 0 || ::connect(socket_, reinterpret_cast<sockaddr const*>(&to), sizeof to) != 0)
      throw std::system_error(errno, std::generic_category(), "connecting to the server");
  }
  client(client const&) = delete;
  client& operator=(client const&) = delete;
  ~client() { ::close(socket_); }

  http::answer ask(std::string_view method, std::string_view path, std::string_view body = {}) {
    auto const bytes = http::to_bytes(method, path, body);
    for (std::size_t sent = 0; sent < bytes.size();) {
      auto const count = ::send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (count < 0) throw std::system_error(errno, std::generic_category(), "asking");
      sent += static_cast<std::size_t>(count);
    }
    std::array<char, 65536> part{};
    for (bool whole = false; !whole;) {
      auto const count = ::recv(socket_, part.data(), part.size(), 0);
      if (count <= 0) throw std::runtime_error("the server has closed the connection");
      whole = reader_.feed({part.data(), static_cast<std::size_t>(count)});
    }
    return reader_.take();
  }

 private:
  int socket_;
  http::answer_reader reader_;
};

/// What each checkpoint makes of each text.
class expectations {
 public:
  expectations(tokenizer const& cut, std::vector<std::string> const& checkpoints, std::size_t heads) {
    for (auto const& path : checkpoints) {
      bert const model = load(path, heads);
      hidden_ = model.layout().hidden;
      std::vector<std::vector<std::int32_t>> ids;
      for (auto const& text : texts)
        ids.push_back(cut.ids(text, std::min<std::size_t>(256, model.layout().positions)));
      rows_.push_back(model.embed(ids));
    }
    for (std::size_t i = 0; i < rows_.size(); ++i)
      for (std::size_t k = 0; k < i; ++k) check_different(rows_[i], rows_[k]);
  }
  bool right(std::uint64_t version, std::size_t text, json::array const& given) const {
    if (version == 0 || given.size() != hidden_) return false;
    float const* const row = rows_[(version - 1) % rows_.size()].data() + text * hidden_;
    for (std::size_t k = 0; k < hidden_; ++k)
      if (!(std::abs(given[k].to_number<float>() - row[k]) <= tolerance)) return false;
    return true;
  }

 private:
  /// In every text.
  void check_different(std::vector<float> const& a, std::vector<float> const& b) const {
    for (std::size_t i = 0; i < texts.size(); ++i) {
      float most = 0;
      for (std::size_t k = i * hidden_; k < (i + 1) * hidden_; ++k)
        most = std::max(most, std::abs(a[k] - b[k]));
      if (!(most > 100 * tolerance))
        throw std::runtime_error("two checkpoints are too alike to tell them apart");
    }
  }
  std::size_t hidden_ = 0;
  std::vector<std::vector<float>> rows_;
};

/// What came of the requests of one phase.
struct outcome {
  std::vector<double> milliseconds;
  std::map<std::uint64_t, std::size_t> versions;
  std::size_t failed = 0, mixed = 0, backwards = 0;

  void add(outcome const& other) {
    milliseconds.insert(milliseconds.end(), other.milliseconds.begin(), other.milliseconds.end());
    for (auto const& [version, count] : other.versions) versions[version] += count;
    failed += other.failed, mixed += other.mixed, backwards += other.backwards;
  }
  bool good() const { return failed + mixed + backwards == 0 && !milliseconds.empty(); }
  void print(char const* name, double seconds) {
    std::sort(milliseconds.begin(), milliseconds.end());
    auto const at = [&](double part) {
      auto const last = static_cast<double>(milliseconds.size() - 1);
      return milliseconds[static_cast<std::size_t>(std::lround(part * last))];
    };
    if (milliseconds.empty()) milliseconds.push_back(NAN);
    std::printf("%-13s %6zu answers in %5.1f s from %3zu versions; failed %zu, mixed %zu, backwards %zu; "
                "p50 %.1f ms, p99 %.1f ms, most %.1f ms\n",
                name, milliseconds.size(), seconds, versions.size(), failed, mixed, backwards, at(0.5),
                at(0.99), at(1));
  }
};

/// One connection's requests, until `over`.
outcome ask_on(std::uint16_t port, expectations const& expected, std::size_t number,
               std::uint64_t last_version, std::atomic<bool>& over) {
  outcome seen;
  client server(port);
  std::uint64_t newest = 0;
  for (std::size_t turn = number; !over; ++turn) {
    std::array<std::size_t, texts_of_one> which{};
    json::array chosen;
    for (std::size_t i = 0; i < which.size(); ++i) {
      which[i] = (turn * 3 + i * 5) % texts.size();
      chosen.push_back(json::string(texts[which[i]]));
    }
    auto const body = json::serialize(json::object{{"texts", chosen}});
    auto const began = steady::now();
    auto const said = server.ask("POST", "/embed", body);
    seen.milliseconds.push_back(std::chrono::duration<double, std::milli>(steady::now() - began).count());
    if (said.status != 200) {
      if (seen.failed++ == 0) std::cerr << "load: status " << said.status << ": " << said.body;
      continue;
    }
    auto const answer = json::parse(said.body).as_object();
    auto const version = answer.at("version").to_number<std::uint64_t>();
    ++seen.versions[version];
    if (version < newest) ++seen.backwards;
    newest = version;
    auto const& rows = answer.at("embeddings").as_array();
    bool right = rows.size() == which.size();
    for (std::size_t i = 0; right && i < which.size(); ++i)
      right = expected.right(version, which[i], rows[i].as_array());
    if (!right) ++seen.mixed;
    if (version == last_version) over = true;
  }
  return seen;
}

/// All connections at once, until one answer came from `last_version` (0: none does) or `longest` is over.
outcome ask_all(std::uint16_t port, expectations const& expected, std::size_t connections,
                std::uint64_t last_version, std::chrono::duration<double> longest) {
  std::atomic<bool> over = false;
  std::mutex mutex;
  outcome all;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < connections; ++i) {
    threads.emplace_back([&, i] {
      outcome mine;
      try {
        mine = ask_on(port, expected, i, last_version, over);
      } catch (std::exception const& error) {
        std::cerr << "load: " << error.what() << '\n';
        ++mine.failed;
        over = true;
      }
      std::scoped_lock const lock(mutex);
      all.add(mine);
    });
  }
  auto const end = steady::now() + longest;
  while (!over && steady::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  over = true;
  for (auto& thread : threads) thread.join();
  return all;
}

int check(std::uint16_t port, std::size_t connections, std::uint64_t versions, std::size_t heads,
          std::string const& vocabulary, std::vector<std::string> const& checkpoints) {
  tokenizer const cut(vocabulary);
  expectations const expected(cut, checkpoints, heads);
  std::printf("ready\n"); // the trainer may begin
  std::fflush(stdout);
  client watch(port);
  auto const patience = steady::now() + std::chrono::minutes(2);
  while (watch.ask("GET", "/readyz").status != 200) {
    if (steady::now() > patience) throw std::runtime_error("the server serves nothing");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  auto const began = steady::now();
  auto swapping = ask_all(port, expected, connections, versions, std::chrono::minutes(10));
  std::chrono::duration<double> const took = steady::now() - began;
  auto still = ask_all(port, expected, connections, 0, took);
  swapping.print("with swaps:", took.count());
  still.print("without:", took.count());
  bool const reached = swapping.versions.count(versions) == 1;
  if (!reached) std::cerr << "load: no answer came from version " << versions << '\n';
  bool const between = versions == 1 || swapping.versions.size() > 1;
  if (!between) std::cerr << "load: all swaps were over before the first answer\n";
  return swapping.good() && still.good() && reached && between ? 0 : 1;
}

} // namespace

int main(int argc, char** argv) try {
  std::vector<std::string> const words(argv + 1, argv + argc);
  if (words.size() == 4 && words[0] == "variant") {
    write_variant(words[1], words[2], static_cast<unsigned>(std::stoul(words[3])));
    return 0;
  }
  if (words.size() >= 7 && words[0] == "check")
    return check(static_cast<std::uint16_t>(std::stoul(words[1])), std::stoul(words[2]),
                 std::stoull(words[3]), std::stoul(words[4]), words[5], {words.begin() + 6, words.end()});
  throw std::invalid_argument(
      "usage: inference_load variant CHECKPOINT OTHER NUMBER\n"
      "       inference_load check PORT CONNECTIONS VERSIONS HEADS VOCABULARY CHECKPOINT...");
} catch (std::exception const& error) {
  std::cerr << "load: " << error.what() << '\n';
  return 1;
}
