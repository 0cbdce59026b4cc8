// An async trainer that really trains: a classifier of three classes (weather, cooking, computing) on top of
// the sentence embeddings of a BERT checkpoint, whose weights stay as they are. Every step is sent, as a
// version, and the inference server's answers to /classify change with it.
//
//   train_probe SOCKET STEPS RECEIVERS HEADS VOCABULARY CHECKPOINT
//
// The classifier is a softmax regression, "probe.weight" and "probe.bias": it starts at zero and learns from
// 24 sentences by gradient descent. The loss is printed for every step, and how many of 9 other sentences are
// classified right. A sample of ropeway; Apache-2.0.
#include <algorithm>
#include <array>
#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
#include <cmath>
#include <iostream>
#include <ropeway/ropeway.hpp>

#include "bert.hpp"
#include "number.hpp"
#include "tokenizer.hpp"

namespace {

using ropeway::awaitable;
using std::chrono::seconds;

constexpr std::size_t classes = 3;
constexpr float rate = 4;

struct example {
  std::size_t label;
  char const* text;
};
constexpr example training[] = {
    {0, "Rain is expected in the north by the evening."},
    {0, "A cold front brings snow to the mountains."},
    {0, "It was the hottest July since records began."},
    {0, "The storm tore roofs off houses along the coast."},
    {0, "Fog will clear slowly during the morning."},
    {0, "Strong winds and thunder kept everyone inside."},
    {0, "Tomorrow will be sunny with a light breeze."},
    {0, "The drought has left the fields dry and cracked."},
    {1, "Whisk the eggs with sugar until they are pale."},
    {1, "Let the dough rest for an hour before you bake it."},
    {1, "Fry the onions in butter until golden."},
    {1, "The soup needs more salt and a squeeze of lemon."},
    {1, "Roast the chicken at two hundred degrees."},
    {1, "She chopped garlic and parsley for the sauce."},
    {1, "Boil the pasta in plenty of salted water."},
    {1, "This cake calls for dark chocolate and almonds."},
    {2, "The compiler rejects the program with a type error."},
    {2, "Our database server ran out of memory last night."},
    {2, "Merge the branch once the unit tests pass."},
    {2, "A race condition corrupts the linked list."},
    {2, "The new processor has a larger second level cache."},
    {2, "Install the package and restart the service."},
    {2, "The function returns a pointer to freed memory."},
    {2, "Network packets were dropped by the firewall."},
};
constexpr example held_out[] = {
    {0, "Clouds are moving in and it may hail tonight."},
    {0, "After weeks of frost the lake is frozen over."},
    {0, "The forecast promises a mild and wet autumn."},
    {1, "Simmer the beans with a bay leaf and some bacon."},
    {1, "Knead the bread until it feels elastic."},
    {1, "Serve the salmon with potatoes and dill."},
    {2, "The script crashes when the file does not exist."},
    {2, "We encrypt the hard disk of every laptop."},
    {2, "Recursion without a base case overflows the stack."},
};

bert load(std::string const& path, std::size_t heads) {
  auto const stored = ropeway::checkpoint::open(path);
  std::vector<ropeway::tensor_info> infos;
  for (auto const& each : stored.tensors()) infos.push_back(each.info);
  std::erase_if(infos, [](auto const& info) { return info.name.starts_with("probe."); });
  auto const plain = bert_layout::of(infos, heads);
  infos.push_back({"probe.weight", ropeway::dtype::f32, {classes, plain.hidden}});
  infos.push_back({"probe.bias", ropeway::dtype::f32, {classes}});
  bert model(bert_layout::of(infos, heads));
  auto views = model.mutable_views();
  for (auto const& view : views)
    if (view.name().starts_with("probe."))
      std::fill_n(model.find(view.name()), view.dims().elements().value(), 0.0F);
  std::erase_if(views, [](auto const& view) { return view.name().starts_with("probe."); });
  ropeway::read_into(stored, views);
  return model;
}

class trainer {
 public:
  trainer(std::string const& path, std::size_t heads, std::string const& vocabulary)
      : model_(load(path, heads)), hidden_(model_.layout().hidden) {
    tokenizer const cut(vocabulary);
    known_ = embed(cut, training);
    asked_ = embed(cut, held_out);
  }

  std::vector<ropeway::tensor_view> views() const { return model_.views(); }

  /// The loss, and where it falls. Reads the weights only, so it may run while they are being sent.
  float look() {
    slope_.assign(classes * hidden_ + classes, 0);
    float loss = 0;
    for (std::size_t i = 0; i < std::size(training); ++i) {
      std::span const row(known_.data() + i * hidden_, hidden_);
      auto error = model_.classify(row);
      loss -= std::log(error[training[i].label]);
      error[training[i].label] -= 1;
      for (std::size_t c = 0; c < classes; ++c) {
        for (std::size_t k = 0; k < hidden_; ++k) slope_[c * hidden_ + k] += error[c] * row[k];
        slope_[classes * hidden_ + c] += error[c];
      }
    }
    return loss / static_cast<float>(std::size(training));
  }
  std::size_t right() const {
    std::size_t count = 0;
    for (std::size_t i = 0; i < std::size(held_out); ++i) {
      auto const scores = model_.classify(std::span(asked_.data() + i * hidden_, hidden_));
      auto const best = std::max_element(scores.begin(), scores.end()) - scores.begin();
      count += static_cast<std::size_t>(best) == held_out[i].label ? 1U : 0U;
    }
    return count;
  }
  /// One step down. Writes the weights.
  void step() {
    float* const weight = model_.find("probe.weight");
    float* const bias = model_.find("probe.bias");
    float const by = rate / static_cast<float>(std::size(training));
    for (std::size_t i = 0; i < classes * hidden_; ++i) weight[i] -= by * slope_[i];
    for (std::size_t c = 0; c < classes; ++c) bias[c] -= by * slope_[classes * hidden_ + c];
  }

 private:
  std::vector<float> embed(tokenizer const& cut, std::span<example const> texts) const {
    std::vector<std::vector<std::int32_t>> ids;
    for (auto const& each : texts)
      ids.push_back(cut.ids(each.text, std::min<std::size_t>(256, model_.layout().positions)));
    return model_.embed(ids);
  }
  bert model_;
  std::size_t hidden_;
  std::vector<float> known_, asked_; // embeddings: what is below the classifier does not change
  std::vector<float> slope_;
};

// On a pool, like a step on a GPU: the loop is free meanwhile.
awaitable<float> look(trainer& trained) {
  float const loss = trained.look();
  co_return loss;
}

awaitable<void> train(ropeway::sender& sender, asio::thread_pool& pool, trainer& trained, std::uint64_t steps,
                      std::size_t receivers) {
  auto const tensors = sender.prepare(trained.views());
  co_await sender.wait_for_receivers(receivers, seconds(60));
  for (std::uint64_t version = 1; version <= steps; ++version) {
    ropeway::sending sending = co_await sender.start(version, tensors);
    float const loss =
        co_await asio::co_spawn(pool, look(trained), ropeway::use_awaitable); // while it is sent
    std::cout << "version " << version << ": loss " << loss << ", " << trained.right() << " of "
              << std::size(held_out) << " held-out sentences right" << std::endl;
    co_await sending.source_free(); // from here on nobody reads the weights
    trained.step();
    co_await sending.done();
  }
  co_await sender.close();
}

} // namespace

int main(int argc, char** argv) try {
  if (argc != 7)
    throw std::invalid_argument("usage: train_probe SOCKET STEPS RECEIVERS HEADS VOCABULARY CHECKPOINT");
  auto const steps = number("STEPS", argv[2]), receivers = number("RECEIVERS", argv[3]);
  auto const heads = number("HEADS", argv[4]);
  trainer trained(argv[6], heads, argv[5]); // before the sender listens: peers want an answer soon
  asio::io_context loop;
  asio::thread_pool pool(1); // after the loop, so that it ends before: what runs on it completes on the loop
  ropeway::sender_options options;
  options.min_receivers(static_cast<std::uint32_t>(receivers));
  ropeway::sender sender(loop.get_executor(), argv[1], options);
  asio::co_spawn(loop, train(sender, pool, trained, steps, receivers), [](std::exception_ptr error) {
    if (error) std::rethrow_exception(error);
  });
  loop.run();
} catch (std::exception const& error) {
  std::cerr << "train_probe: " << error.what() << '\n';
  return 1;
}
