// The inference server over loopback sockets: what it answers while versions come and go, what controls it,
// and what it does not let a stranger do. Part of ropeway; Apache-2.0.
#include <arpa/inet.h>
#include <ifaddrs.h>

#include <asio/ip/tcp.hpp>
#include <asio/thread_pool.hpp>
#include <asio/write.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <ropeway/sender.hpp>

#include "reference.hpp"
#include "server.hpp"
#include "support/attempt.hpp"
#include "support/co_test.hpp"
#include "support/scratch.hpp"

using namespace ropeway;
using namespace ropeway::testing;
using namespace std::chrono_literals;
using asio::ip::tcp;
namespace json = boost::json;

namespace {

constexpr float tolerance = 1e-5F;

/// The tiny model as a trainer holds it; `number` tells its variants apart.
bert variant(int number, std::size_t classes = 0) {
  bert const tiny = tiny_model();
  auto infos = tiny.layout().tensors;
  if (classes > 0) {
    infos.push_back({"probe.weight", dtype::f32, {classes, 32}});
    infos.push_back({"probe.bias", dtype::f32, {classes}});
  }
  bert made(bert_layout::of(infos, 4));
  auto const from = tiny.views();
  auto const into = made.mutable_views();
  for (std::size_t i = 0; i < into.size(); ++i) {
    std::span const values(reinterpret_cast<float*>(into[i].data()),
                           static_cast<std::size_t>(into[i].dims().elements().value()));
    auto const* const old = i < from.size() ? reinterpret_cast<float const*>(from[i].data()) : nullptr;
    for (std::size_t k = 0; k < values.size(); ++k)
      values[k] = (old ? old[k] : 0.1F * static_cast<float>(k % 7)) *
                  (k % 2 == 0 ? 1.0F : 1.0F + 0.3F * static_cast<float>(number));
  }
  return made;
}

std::vector<float> embedding(bert const& model, tokenizer const& cut, std::string const& text) {
  std::vector<std::vector<std::int32_t>> const ids{cut.ids(text, 40)};
  return model.embed(ids);
}

bool same(std::vector<float> const& a, std::vector<float> const& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::abs(a[i] - b[i]) <= tolerance)) return false;
  return true;
}

/// An answer, with its JSON.
struct reply {
  unsigned status = 0;
  json::object body;
  std::string text, allow;
  std::uint64_t version() const { return body.at("version").to_number<std::uint64_t>(); }
  std::vector<float> row(std::size_t index) const {
    return numbers<float>(body.at("embeddings").as_array().at(index));
  }
  std::string error() const {
    return body.contains("error") ? std::string(body.at("error").as_string()) : "";
  }
};

/// A connection of a client's.
class browser {
 public:
  browser(any_io_executor executor, std::uint16_t port, char const* address = "127.0.0.1")
      : socket_(executor), to_(asio::ip::make_address(address), port) {}

  awaitable<void> say(std::string bytes) {
    if (!socket_.is_open()) co_await socket_.async_connect(to_, use_awaitable);
    co_await asio::async_write(socket_, asio::buffer(bytes), use_awaitable);
  }
  awaitable<reply> hear() {
    std::array<char, 65536> part{};
    bool whole = reader_.feed(std::string_view());
    while (!whole) {
      auto const count = co_await socket_.async_read_some(asio::buffer(part), use_awaitable);
      whole = reader_.feed(std::string_view(part.data(), count));
    }
    auto const said = reader_.take();
    reply made;
    made.status = said.status;
    made.text = said.body;
    made.allow = said.allow;
    if (said.type == "application/json") made.body = json::parse(said.body).as_object();
    co_return made;
  }
  awaitable<reply> ask(std::string method, std::string path, std::string body = {},
                       std::string headers = {}) {
    co_await say(http::to_bytes(method, path, body, headers));
    reply made = co_await hear();
    co_return made;
  }
  awaitable<reply> post(std::string path, std::string body = std::string()) {
    return ask("POST", std::move(path), std::move(body));
  }
  awaitable<reply> get(std::string path) { return ask("GET", std::move(path)); }
  /// Whether the server closes without another word.
  awaitable<bool> closed() {
    char byte = 0;
    auto [error, count] = co_await socket_.async_read_some(asio::buffer(&byte, 1), compat::as_result);
    co_return error&& count == 0;
  }
  void close() { socket_.close(); }

 private:
  tcp::socket socket_;
  tcp::endpoint to_;
  http::answer_reader reader_;
};

// Bodies, made by functions: g++ 12 takes no braced list inside a co_await expression.
template <class... Text>
std::string texts(Text const&... each) {
  json::array made;
  (made.push_back(json::string(each)), ...);
  return json::serialize(json::object{{"texts", made}});
}
std::string version_of(std::uint64_t number) { return json::serialize(json::object{{"version", number}}); }
std::string socket_of(std::string const& name) { return json::serialize(json::object{{"socket", name}}); }

/// A server, a place for trainers' sockets, and what both models make of texts.
class stage {
 public:
  explicit stage(any_io_executor loop)
      : executor(std::move(loop)), cut(reference_file("tiny_vocabulary.txt")) {
    settings.vocabulary = reference_file("tiny_vocabulary.txt");
    settings.socket_directory = directory.file("sockets");
    settings.heads = 4;
    settings.port = 0;
    settings.connect_limit = patient(5000ms);
    settings.update_limit = patient(5000ms);
    std::filesystem::create_directory(settings.socket_directory);
    std::filesystem::permissions(settings.socket_directory, std::filesystem::perms::owner_all);
  }

  std::string socket(std::string const& name = "weights.sock") const {
    return settings.socket_directory / name;
  }
  void open() { server.emplace(executor, pool, settings); }
  /// A trainer that listens, a server that follows it.
  awaitable<void> follow() {
    sender_options options;
    options.min_receivers(0).decide_limit(patient(5000ms));
    trainer.emplace(executor, socket(), options);
    settings.socket = "weights.sock";
    if (!server) open();
    co_await trainer->wait_for_receivers(1, patient(5000ms));
  }
  awaitable<send_report> send(std::uint64_t version, bert const& model) {
    send_report report = co_await trainer->send_weights(version, model.views());
    co_return report;
  }
  browser client() const { return browser(executor, server->port()); }
  /// Asks until /metrics has this line.
  awaitable<void> seen(std::string line) {
    browser watch = client();
    for (;;) {
      auto const said = co_await watch.get("/metrics");
      if (said.text.find(line + "\n") != std::string::npos) co_return;
    }
  }
  awaitable<void> close() {
    co_await server->close();
    if (trainer) co_await trainer->close();
  }

  any_io_executor executor;
  scratch directory;
  tokenizer cut;
  server_settings settings;
  asio::thread_pool pool{2}; // ends before the loop
  std::optional<inference_server> server;
  std::optional<sender> trainer;
};

std::string outcome_of(send_report const& report) {
  REQUIRE(report.receivers.size() == 1);
  return std::string(name(report.receivers[0].what)) + ": " + report.receivers[0].text;
}

} // namespace

CO_TEST("it serves nothing before a version came, and then names the version that it computed with") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  co_await on.follow();
  auto client = on.client();
  auto const early = co_await client.post("/embed", texts("the cat"));
  CHECK(early.status == 503);
  CHECK(early.error() == "no version has come yet");
  auto const unready = co_await client.get("/readyz");
  CHECK(unready.status == 503);
  auto const alive = co_await client.get("/healthz");
  CHECK(alive.status == 200);

  auto const model = variant(0);
  auto const report = co_await on.send(7, model);
  CHECK(outcome_of(report).starts_with("committed"));
  auto const said = co_await client.post("/embed", texts("The cat sat.", "", "weather"));
  REQUIRE(said.status == 200);
  CHECK(said.version() == 7);
  CHECK(said.body.at("embeddings").as_array().size() == 3);
  CHECK(same(said.row(0), embedding(model, on.cut, "The cat sat.")));
  CHECK(same(said.row(1), embedding(model, on.cut, "")));
  auto const about = co_await client.get("/version");
  CHECK(about.body.at("state") == "committed");
  CHECK(about.body.at("version").to_number<int>() == 7);
  CHECK(about.body.at("serving") == true);
  CHECK(about.body.at("arriving").is_null());
  CHECK(std::string(about.body.at("from").as_string()).find("weights.sock") != std::string::npos);
  CHECK(about.body.at("since").as_string().size() == 24);
  CHECK(about.body.at("session").as_object().at("phase") == "idle");
  auto const counted = co_await client.get("/metrics");
  std::vector<char const*> const lines{"ropeway_swaps_total 1\n",
                                       "ropeway_version 7\n",
                                       "ropeway_updates_total{outcome=\"committed\"} 1\n",
                                       "ropeway_requests_total{endpoint=\"/embed\",status=\"200\"} 1\n",
                                       "ropeway_requests_total{endpoint=\"/embed\",status=\"503\"} 1\n",
                                       "ropeway_request_seconds_count{endpoint=\"/embed\"} 2\n",
                                       "ropeway_swap_seconds_count 1\n",
                                       "ropeway_swap_routes_total{route=\"host\"} 1\n",
                                       "ropeway_swap_routes_total{route=\"mapped\"} 0\n",
                                       "ropeway_session_phase{phase=\"idle\"} 1\n"};
  for (auto const* line : lines)
    CHECK_MESSAGE(counted.text.find(line) != std::string::npos, line << counted.text);
  co_await on.close();
}

namespace {

struct tally {
  std::size_t answers = 0, wrong = 0;
  std::uint64_t newest = 0;
  bool over = false;
};

// Many long texts a request, so that swaps in its middle would show.
char const* const long_text =
    "the cat sat on the mat, the weather is new, the server is on the mat: the cat sat on it";
awaitable<void> keep_asking(browser client, std::array<std::vector<float>, 3> const& right, tally& of) {
  json::array list;
  for (int i = 0; i < 60; ++i) list.push_back(json::string(long_text));
  std::string const body = json::serialize(json::object{{"texts", list}});
  std::uint64_t newest = 0;
  while (!of.over) {
    auto const said = co_await client.ask("POST", "/embed", body);
    ++of.answers;
    bool good = said.status == 200 && said.version() >= newest;
    for (std::size_t i = 0; good && i < list.size(); ++i) good = same(said.row(i), right[said.version() % 3]);
    if (!good) ++of.wrong;
    if (said.status == 200) newest = said.version(), of.newest = std::max(of.newest, newest);
  }
}

} // namespace

CO_TEST(
    "ten swaps while clients ask, and then twenty faster than answers: every answer is wholly of the version "
    "that it names") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.tokens = 4096;
  on.settings.workers = 2;
  co_await on.follow();
  // Three, because there are two sets: with two in turn each set would always hold the same one.
  std::array const models{variant(0), variant(1), variant(2)};
  std::array<std::vector<float>, 3> right;
  for (std::size_t i = 0; i < right.size(); ++i) right[i] = embedding(models[i], on.cut, long_text);
  for (std::size_t i = 0; i < right.size(); ++i) REQUIRE_FALSE(same(right[i], right[(i + 1) % 3]));
  co_await on.send(1, models[1]);
  tally counted;
  std::vector<task<void>> clients;
  for (int i = 0; i < 3; ++i) clients.push_back(beside(executor, keep_asking(on.client(), right, counted)));
  for (std::uint64_t version = 2; version <= 11; ++version) {
    auto const report = co_await on.send(version, models[version % 3]);
    CHECK(outcome_of(report).starts_with("committed"));
    auto const had = counted.answers;
    auto watch = on.client();
    while (counted.answers < had + 3) { // each version is asked for its answers
      auto const said = co_await watch.get("/healthz");
      CHECK(said.status == 200);
    }
  }
  // What is being read is written again soon, if nothing keeps it.
  for (std::uint64_t version = 12; version <= 31; ++version) {
    auto const report = co_await on.send(version, models[version % 3]);
    CHECK(outcome_of(report).starts_with("committed"));
  }
  auto last = on.client();
  auto const said = co_await last.post("/embed", texts("cat"));
  CHECK(said.version() == 31);
  counted.over = true;
  for (auto& one : clients) {
    auto const end = co_await one.join();
    CHECK_MESSAGE(end.ok(), end.said());
  }
  CHECK(counted.answers >= 30);
  CHECK(counted.wrong == 0);
  CHECK(counted.newest >= 11);
  co_await on.close();
}

CO_TEST("a search never mixes versions: an index that was embedded with an old one is embedded anew") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.tokens = 5; // one text at a time
  co_await on.follow();
  std::array const models{variant(0), variant(1)};
  co_await on.send(2, models[0]);
  auto client = on.client();
  std::array const indexed{"the cat sat", "new weights", "weather"};
  auto const added = co_await client.post("/index", texts("the cat sat", "new weights"));
  CHECK(added.body.at("indexed").to_number<int>() == 2);
  std::string const query = R"({"query":"cat","top":2})";
  std::vector<std::uint64_t> const versions{2, 3, 4};
  for (std::uint64_t const version : versions) {
    if (version > 2) co_await on.send(version, models[version % 2]);
    if (version == 3) co_await client.post("/index", texts("weather"));
    auto const said = co_await client.post("/search", query);
    REQUIRE(said.status == 200);
    CHECK(said.version() == version);
    auto const& matches = said.body.at("matches").as_array();
    REQUIRE(matches.size() == 2);
    auto const asked = embedding(models[version % 2], on.cut, "cat");
    float before = 2;
    for (auto const& match : matches) {
      auto const index = match.at("index").to_number<std::size_t>();
      CHECK(match.at("text") == indexed.at(index));
      auto const row = embedding(models[version % 2], on.cut, indexed.at(index));
      float score = 0;
      for (std::size_t k = 0; k < row.size(); ++k) score += row[k] * asked[k];
      CHECK(std::abs(match.at("score").to_number<float>() - score) <= tolerance);
      CHECK(score <= before);
      before = score;
    }
  }
  auto const cleared = co_await client.ask("DELETE", "/index");
  CHECK(cleared.body.at("indexed").to_number<int>() == 0);
  auto const none = co_await client.post("/search", query);
  CHECK(none.body.at("matches").as_array().empty());
  co_await on.close();
}

CO_TEST("while paused requests wait, in a line of limited length, and updates go on") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.waiting = 1;
  co_await on.follow();
  std::array const models{variant(0), variant(1)};
  co_await on.send(1, models[1]);
  auto control = on.client();
  auto const paused = co_await control.post("/pause");
  CHECK(paused.status == 200);
  auto const told = co_await control.get("/is_paused");
  CHECK(told.body.at("is_paused") == true);
  auto first = on.client();
  auto waiting = beside(executor, first.post("/embed", texts("cat")));
  co_await on.seen("ropeway_inference_waiting 1");
  auto const turned_away = co_await control.post("/embed", texts("cat"));
  CHECK(turned_away.status == 503);
  CHECK(turned_away.error() == "too many requests wait");
  auto const report = co_await on.send(2, models[0]);
  CHECK(outcome_of(report).starts_with("committed"));
  CHECK_FALSE(waiting.done());
  co_await control.post("/resume");
  auto const answered = co_await waiting.join();
  REQUIRE_MESSAGE(answered.ok(), answered.said());
  CHECK(answered.value->status == 200);
  CHECK(answered.value->version() == 2);
  CHECK(same(answered.value->row(0), embedding(models[0], on.cut, "cat")));
  co_await on.close();
}

CO_TEST("a request that waits is not waited for when the server closes, nor for ever") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.wait_limit = 50ms;
  co_await on.follow();
  co_await on.send(1, variant(0));
  auto client = on.client();
  co_await client.post("/pause");
  auto const late = co_await client.post("/embed", texts("cat"));
  CHECK(late.status == 503);
  CHECK(late.error() == "paused");
  co_await on.close();

  stage other(executor);
  co_await other.follow();
  co_await other.send(1, variant(0));
  auto control = other.client(), asking = other.client();
  co_await control.post("/pause");
  auto waiting = beside(executor, asking.post("/embed", texts("cat")));
  co_await other.seen("ropeway_inference_waiting 1");
  co_await other.close();
  auto const end = co_await waiting.join();
  REQUIRE_MESSAGE(end.ok(), end.said());
  CHECK(end.value->status == 503);
}

CO_TEST("asleep it refuses updates and answers nothing; awake it serves from the next update on") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  co_await on.follow();
  co_await on.send(1, variant(1));
  auto client = on.client();
  auto const before = co_await client.get("/is_sleeping");
  CHECK(before.body.at("is_sleeping") == false);
  auto const asleep = co_await client.ask("POST", "/sleep?level=1");
  CHECK(asleep.status == 200);
  auto const sleeping = co_await client.get("/is_sleeping");
  CHECK(sleeping.body.at("is_sleeping") == true);
  auto const unanswered = co_await client.post("/embed", texts("cat"));
  CHECK(unanswered.status == 503);
  CHECK(unanswered.error() == "asleep");
  auto const refused = co_await on.send(2, variant(0));
  CHECK(outcome_of(refused).starts_with("refused"));
  CHECK(outcome_of(refused).find("asleep") != std::string::npos);
  auto const about = co_await client.get("/version");
  CHECK(about.body.at("version").is_null());
  CHECK(about.body.at("state") == "nothing");
  auto const window = co_await client.post("/start_weight_update");
  CHECK(window.status == 409);

  auto const awake = co_await client.post("/wake_up");
  CHECK(awake.body.at("serving") == false);
  auto const after = co_await client.get("/is_sleeping");
  CHECK(after.body.at("is_sleeping") == false);
  auto const still = co_await client.post("/embed", texts("cat"));
  CHECK(still.status == 503);
  CHECK(still.error() == "no version has come yet");
  auto const model = variant(0);
  auto const taken = co_await on.send(3, model);
  CHECK(outcome_of(taken).starts_with("committed"));
  auto const said = co_await client.post("/embed", texts("cat"));
  CHECK(said.version() == 3);
  CHECK(same(said.row(0), embedding(model, on.cut, "cat")));
  co_await on.close();
}

CO_TEST("between start and finish only the named version is taken, whichever of offer and name comes first") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  co_await on.follow();
  auto const model = variant(0);
  auto client = on.client(), waiter = on.client();
  auto const unstarted = co_await client.post("/update_weights", version_of(1));
  CHECK(unstarted.status == 409);
  auto const unopened = co_await client.post("/finish_weight_update");
  CHECK(unopened.status == 409);
  auto const started = co_await client.post("/start_weight_update");
  CHECK(started.status == 200);
  auto const twice = co_await client.post("/start_weight_update");
  CHECK(twice.status == 409);
  auto const nameless = co_await client.post("/update_weights");
  CHECK(nameless.status == 400);

  // Offered first, named then.
  auto sending = beside(executor, on.send(5, model));
  co_await on.seen("ropeway_session_phase{phase=\"offered\"} 1");
  auto const named = co_await client.post("/update_weights", version_of(5));
  CHECK_MESSAGE(named.status == 200, named.text);
  CHECK(named.version() == 5);
  auto const sent = co_await sending.join();
  REQUIRE_MESSAGE(sent.ok(), sent.said());
  CHECK(outcome_of(*sent.value).starts_with("committed"));

  // Named first; another version is refused, and the named one is still waited for.
  auto waiting = beside(executor, waiter.post("/update_weights", version_of(6)));
  send_report wrong;
  do wrong = co_await on.send(9, model); // until the request has arrived, it waits for its name instead
  while (outcome_of(wrong).starts_with("skipped"));
  CHECK(outcome_of(wrong).starts_with("refused"));
  CHECK(outcome_of(wrong).find("only version 6 is taken") != std::string::npos);
  auto const second = co_await client.post("/update_weights", version_of(7));
  CHECK(second.status == 409);
  auto const unfinished = co_await client.post("/finish_weight_update");
  CHECK(unfinished.status == 409);
  CHECK_FALSE(waiting.done());
  co_await on.send(6, model);
  auto const came = co_await waiting.join();
  REQUIRE_MESSAGE(came.ok(), came.said());
  CHECK(came.value->status == 200);

  auto const finished = co_await client.post("/finish_weight_update");
  CHECK(finished.status == 200);
  CHECK(finished.version() == 6);
  auto const after = co_await on.send(7, model); // by itself again
  CHECK(outcome_of(after).starts_with("committed"));
  co_await on.close();
}

CO_TEST("an update that nobody names is put off, one that does not come or fails is said so") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.name_limit = 30ms;
  on.settings.update_limit = 100ms;
  co_await on.follow();
  auto client = on.client(), waiter = on.client();
  co_await client.post("/start_weight_update");
  auto const unnamed = co_await on.send(1, variant(0));
  CHECK(outcome_of(unnamed).starts_with("skipped"));
  CHECK(outcome_of(unnamed).find("no update_weights has named a version") != std::string::npos);
  auto const missing = co_await client.post("/update_weights", version_of(4));
  CHECK(missing.status == 504);
  co_await on.close();

  stage other(executor);
  co_await other.follow();
  auto control = other.client(), asking = other.client();
  co_await control.post("/start_weight_update");
  std::vector<float> values(32);
  std::vector<tensor_view> const strange{{"strange", dtype::f32, {32}, values.data()}};
  auto sending = beside(executor, other.trainer->send_weights(2, strange));
  auto const failed = co_await control.post("/update_weights", version_of(2));
  CHECK(failed.status == 502);
  CHECK(failed.error() == "the model has no embeddings.word_embeddings.weight");
  auto const sent = co_await sending.join();
  REQUIRE_MESSAGE(sent.ok(), sent.said());
  CHECK(outcome_of(*sent.value).find("the model has no embeddings.word_embeddings.weight") !=
        std::string::npos);
  co_await other.close();
}

CO_TEST("a stranger can't make it connect to anything but a socket in its directory") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.connect_limit = patient(300ms);
  scratch const elsewhere;
  sender_options options;
  options.min_receivers(0);
  sender outside(executor, elsewhere.file("weights.sock"), options);
  std::filesystem::create_symlink(elsewhere.file("weights.sock"), on.socket("link.sock"));
  std::filesystem::create_directory_symlink(elsewhere.file(""), on.socket("folder"));
  on.open();
  auto client = on.client();
  std::string const up =
      "../" + std::filesystem::path(elsewhere.file("x")).parent_path().filename().string() + "/weights.sock";
  std::vector<std::string> const bad_names{elsewhere.file("weights.sock"),
                                           up,
                                           "../../" + up,
                                           std::string("folder/weights.sock"),
                                           std::string(".."),
                                           std::string("."),
                                           std::string(),
                                           std::string("link.sock"),
                                           std::string("a\0b", 3),
                                           std::string(300, 'x'),
                                           "./../" + up};
  for (std::string const& name : bad_names) {
    auto const said = co_await client.post("/init_weight_transfer_engine", socket_of(name));
    CHECK_MESSAGE((said.status == 400 || said.status == 403), name);
  }
  auto const odd = co_await client.post("/init_weight_transfer_engine", "{\"socket\":3}");
  CHECK(odd.status == 400);
  auto const nobody = co_await client.post("/init_weight_transfer_engine", socket_of("nobody.sock"));
  CHECK(nobody.status == 502);
  auto const connected = co_await outside.receivers();
  CHECK(connected.empty());
  auto const about = co_await client.get("/version");
  CHECK(about.body.at("session").as_object().at("socket") == "");

  // The right name, and then another trainer.
  std::vector<char const*> const good_names{"one.sock", "two.sock"};
  for (auto const* name : good_names) {
    sender trainer(executor, on.socket(name), options);
    auto const good = co_await client.post("/init_weight_transfer_engine", socket_of(name));
    CHECK_MESSAGE(good.status == 200, good.text);
    auto const again = co_await client.post("/init_weight_transfer_engine", socket_of(name));
    CHECK(again.status == 200);
    auto const there = co_await trainer.receivers();
    CHECK(there.size() == 1);
    auto const report = co_await trainer.send_weights(1, variant(0).views());
    CHECK(outcome_of(report).starts_with("committed"));
    co_await trainer.close();
  }
  co_await on.close();
  co_await outside.close();
}

CO_TEST("control needs the token where there is one, and is never for web pages") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.token = "correct horse";
  on.open();
  auto client = on.client();
  std::vector<char const*> const wrong_headers{
      "", "Authorization: Bearer correct hors\r\n", "Authorization: Bearer correct horse1\r\n",
      "Authorization: correct horse\r\n", "Authorization: Bearer \r\n"};
  for (auto const* headers : wrong_headers) {
    auto const said = co_await client.ask("POST", "/pause", "", headers);
    CHECK_MESSAGE(said.status == 401, headers);
  }
  auto const right = co_await client.ask("POST", "/pause", "", "Authorization: Bearer correct horse\r\n");
  CHECK(right.status == 200);
  auto const page = co_await client.ask(
      "POST", "/pause", "", "Authorization: Bearer correct horse\r\nOrigin: http://localhost\r\n");
  CHECK(page.status == 403);
  auto const open = co_await client.get("/version"); // no control
  CHECK(open.status == 200);
  CHECK(open.body.at("paused") == true);
  co_await on.close();
}

namespace {
std::string own_address() {
  std::string found;
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return found;
  for (auto* one = all; one; one = one->ifa_next) {
    if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET) continue;
    auto const address = reinterpret_cast<sockaddr_in const*>(one->ifa_addr)->sin_addr;
    if (ntohl(address.s_addr) >> 24 == 127) continue;
    std::array<char, INET_ADDRSTRLEN> text{};
    ::inet_ntop(AF_INET, &address, text.data(), text.size());
    found = text.data();
  }
  ::freeifaddrs(all);
  return found;
}
} // namespace

CO_TEST("without a token, control is for peers on this host's loopback only") {
  auto const executor = co_await asio::this_coro::executor;
  auto const address = own_address();
  if (address.empty()) {
    MESSAGE("SKIPPED: this host has no other address");
    co_return;
  }
  stage on(executor);
  on.settings.address = "0.0.0.0";
  on.open();
  browser far(executor, on.server->port(), address.c_str());
  auto const refused = co_await far.post("/pause");
  CHECK(refused.status == 403);
  auto const open = co_await far.get("/healthz");
  CHECK(open.status == 200);
  browser near(executor, on.server->port());
  auto const taken = co_await near.post("/pause");
  CHECK(taken.status == 200);
  co_await on.close();
}

CO_TEST("what a client may ask for is limited, and said in words") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.texts = 2;
  on.settings.text_bytes = 20;
  on.settings.tokens = 12;
  on.settings.indexed = 3;
  on.settings.message.body_bytes = 500;
  co_await on.follow();
  co_await on.send(1, variant(0));
  auto client = on.client();
  auto const many = co_await client.post("/embed", texts("a", "b", "c"));
  CHECK(many.status == 413);
  auto const long_one = co_await client.post("/embed", texts("a text that is longer than twenty bytes"));
  CHECK(long_one.status == 413);
  auto const together = co_await client.post("/embed", texts("1 2 3 4 5 6 7", "1 2 3 4 5 6 7"));
  CHECK(together.status == 413);
  CHECK(together.error() == "18 tokens; a request may have 12");
  std::vector<char const*> const bad_texts{
      "", "{", "[]", "{\"texts\":\"a\"}", "{\"texts\":[1]}", "{\"text\":[]}"};
  for (auto const* body : bad_texts) {
    auto const said = co_await client.ask("POST", "/embed", body);
    CHECK_MESSAGE(said.status == 400, body);
  }
  std::vector<char const*> const bad_queries{"{}", "{\"query\":1}", "{\"query\":\"a\",\"top\":0}",
                                             "{\"query\":\"a\",\"top\":\"b\"}"};
  for (auto const* body : bad_queries) {
    auto const said = co_await client.ask("POST", "/search", body);
    CHECK_MESSAGE(said.status == 400, body);
  }
  co_await client.post("/index", texts("a", "b"));
  auto const full = co_await client.post("/index", texts("c", "d"));
  CHECK(full.status == 413);
  auto const none = co_await client.get("/nothing");
  CHECK(none.status == 404);
  auto const wrong = co_await client.get("/index");
  CHECK(wrong.status == 405);
  CHECK(wrong.allow == "POST, DELETE");
  auto const no_probe = co_await client.post("/classify", texts("a"));
  CHECK(no_probe.status == 409);
  auto const good = co_await client.post("/embed", texts("a", "b")); // the connection has survived all that
  CHECK(good.status == 200);

  // What breaks the stream ends the connection, with an answer; even when much of it is still to come.
  auto large = on.client();
  co_await large.say("POST /embed HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n" + std::string(7000000, 'x'));
  auto const too_large = co_await large.hear();
  CHECK(too_large.status == 413);
  auto header = on.client();
  co_await header.say("GET / HTTP/1.1\r\nA: " + std::string(20000, 'x'));
  auto const too_long = co_await header.hear();
  CHECK(too_long.status == 431);
  auto garbage = on.client();
  co_await garbage.say("\x16\x03\x01 this is no HTTP\r\n\r\n");
  auto const nonsense = co_await garbage.hear();
  CHECK(nonsense.status == 400);
  bool const over = co_await garbage.closed();
  CHECK(over);
  garbage.close(), large.close(), header.close();
  co_await on.close();
}

CO_TEST("connections are kept, shared by requests in a row, limited in number and in what they wait for") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  on.settings.connections = 2;
  on.settings.request_limit = patient(1500ms);
  on.open();
  auto first = on.client();
  co_await first.say("GET /healthz HTTP/1.1\r\n\r\nGET /is_paused HTTP/1.1\r\n\r\nGET /healthz "
                     "HTTP/1.1\r\nConnection: close\r\n\r\n");
  auto const one = co_await first.hear();
  CHECK(one.body.contains("status"));
  auto const two = co_await first.hear();
  CHECK(two.body.contains("is_paused"));
  auto const three = co_await first.hear();
  CHECK(three.body.contains("status"));
  bool const ended = co_await first.closed();
  CHECK(ended);

  auto waits = on.client();
  co_await waits.say("POST /index HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 12\r\n\r\n");
  auto const go_on = co_await waits.hear();
  CHECK(go_on.status == 100);
  co_await waits.say("{\"texts\":[]}");
  auto const indexed = co_await waits.hear();
  CHECK(indexed.status == 200);

  auto slow = on.client();
  co_await slow.say("POST /embed HTTP/1.1\r\nContent-Le");
  co_await on.client().get("/healthz"); // one too many now: whatever it says
  auto third = on.client();
  auto const crowded = co_await third.get("/healthz");
  CHECK(crowded.status == 503);
  auto const late = co_await slow.hear();
  CHECK(late.status == 408);
  bool const gone = co_await slow.closed();
  CHECK(gone);
  co_await on.close();

  stage other(executor);
  other.settings.idle_limit = 50ms;
  other.open();
  auto idle = other.client();
  auto const before = co_await idle.get("/healthz");
  CHECK(before.status == 200);
  bool const closed = co_await idle.closed();
  CHECK(closed);
  co_await other.close();
}

CO_TEST("a model with a classifier takes the place of one without, and classifies with its own version") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  co_await on.follow();
  co_await on.send(1, variant(0));
  auto const probed = variant(1, 3);
  auto const report = co_await on.send(2, probed);
  CHECK(outcome_of(report).starts_with("committed"));
  auto client = on.client();
  auto const said = co_await client.post("/classify", texts("the cat", "weather"));
  REQUIRE_MESSAGE(said.status == 200, said.text);
  CHECK(said.version() == 2);
  auto const right = probed.classify(embedding(probed, on.cut, "weather"));
  auto const scores = numbers<float>(said.body.at("scores").as_array().at(1));
  CHECK(same(scores, right));
  CHECK(said.body.at("labels").as_array().at(1).to_number<long>() ==
        std::max_element(right.begin(), right.end()) - right.begin());
  co_await on.close();
}

CO_TEST("it serves on when its trainer is gone, and follows the next one at the same place") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  co_await on.follow();
  co_await on.send(8, variant(0));
  auto client = on.client();
  on.trainer.reset(); // without a goodbye
  co_await on.seen("ropeway_session_phase{phase=\"connecting\"} 1");
  auto const alone = co_await client.post("/embed", texts("cat"));
  CHECK(alone.version() == 8);
  co_await on.follow();
  auto const model = variant(1);
  co_await on.send(1, model); // a new trainer's versions begin where it likes
  auto const said = co_await client.post("/embed", texts("cat"));
  CHECK(said.version() == 1);
  CHECK(same(said.row(0), embedding(model, on.cut, "cat")));
  co_await on.close();
}

CO_TEST("it starts only with a directory for sockets that nobody else can write to") {
  auto const executor = co_await asio::this_coro::executor;
  stage on(executor);
  std::filesystem::permissions(on.settings.socket_directory, std::filesystem::perms(0750));
  CHECK_THROWS_WITH_AS(on.open(), doctest::Contains("must belong to this user alone"), std::runtime_error);
  on.settings.socket_directory = on.directory.file("missing") + "/and below it";
  CHECK_THROWS_WITH_AS(on.open(), doctest::Contains("and below it is not there, and can't be made"),
                       std::runtime_error);
  on.settings.socket_directory.clear();
  on.settings.socket = "weights.sock";
  CHECK_THROWS_WITH_AS(on.open(), doctest::Contains("--socket needs --socket-dir"), std::runtime_error);
  on.settings.socket.clear();
  on.settings.socket_directory = on.directory.file("made when missing");
  on.open();
  CHECK(std::filesystem::status(on.settings.socket_directory).permissions() ==
        std::filesystem::perms::owner_all);
  co_await on.close();
}

CO_TEST("a port that is taken is named") {
  stage on(co_await asio::this_coro::executor);
  on.open();
  auto other = on.settings;
  other.port = on.server->port();
  asio::thread_pool pool(1);
  auto const executor = co_await asio::this_coro::executor;
  CHECK_THROWS_WITH_AS(inference_server(executor, pool, other),
                       doctest::Contains(std::to_string(other.port).c_str()), std::runtime_error);
  co_await on.close();
}

TEST_CASE("a token's file must be private and hold one") {
  scratch const folder;
  std::ofstream(folder.file("token")) << "secret\n";
  std::filesystem::permissions(folder.file("token"), std::filesystem::perms(0644));
  CHECK_THROWS_WITH_AS(read_token(folder.file("token")), doctest::Contains("open to other users"),
                       std::runtime_error);
  std::filesystem::permissions(folder.file("token"), std::filesystem::perms(0600));
  CHECK(read_token(folder.file("token")) == "secret");
  std::ofstream(folder.file("token"), std::ios::trunc) << "\n";
  CHECK_THROWS_WITH_AS(read_token(folder.file("token")), doctest::Contains("holds no token"),
                       std::runtime_error);
  CHECK_THROWS_AS(read_token(folder.file("none")), std::runtime_error);
}
