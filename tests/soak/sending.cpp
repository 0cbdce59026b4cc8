#include <asio/post.hpp>

#include <deque>
#include <map>
#include <stdexcept>

#include "process.hpp"

namespace ropeway::soak {
namespace {

using testing::memory_kind;

constexpr std::size_t blocks_kept = 6;
constexpr char thrown_words[] = "the soak's source throws";

/// The tensors of a layout in the sender's memory.
class block {
 public:
  block(layout what, std::shared_ptr<memory_kind> kind) : what_(std::move(what)), kind_(std::move(kind)) {
    std::uint64_t at = 0;
    for (auto const& tensor : what_.tensors) {
      if (tensor.how == lie::tied) {
        at_.push_back(at_[tensor.tied_to]);
        continue;
      }
      at_.push_back(at);
      at = (at + source_bytes(tensor) + 63) / 64 * 64;
    }
    staging_.resize(at);
    memory_ = kind_->allocate(at);
  }

  /// Before fill(): where the tensors lie from now on. What lies in shared memory is to be shared with every
  /// new sender.
  void lie_in(sharing how, std::uint64_t shift) {
    if (how != sharing::none && !shared_) shared_ = shared_memory::make(staging_.size() + most_shift);
    if (how != how_ || shift != shift_) prepared = {};
    how_ = how, shift_ = shift;
  }
  void share_with(sender& to, std::uint64_t number) {
    if (how_ == sharing::none || std::exchange(shared_with_, number) == number) return;
    to.share(shared_);
  }

  layout const& what() const { return what_; }
  void fill(std::uint64_t seed, std::uint64_t update) {
    for (std::uint32_t i = 0; i < what_.tensors.size(); ++i) {
      if (what_.tensors[i].how == lie::tied) continue;
      make_source(seed, update, what_, i, image_);
      lay_out(what_.tensors[i], image_, staging_.data() + at_[i]);
    }
    write();
  }
  /// The trainer goes on: what is read from now on is wrong.
  void overwrite() {
    std::ranges::fill(staging_, std::byte{0xee});
    write();
  }
  std::vector<tensor_view> views(std::vector<bool> const& sent) const {
    std::vector<tensor_view> all;
    for (std::uint32_t i = 0; i < what_.tensors.size(); ++i)
      if (sent[i]) all.push_back(source_view(what_.tensors[i], base_of(i) + at_[i], kind_->where()));
    return all;
  }

  prepared_tensors prepared; ///< all of them, by the sender of now

  static constexpr std::uint64_t most_shift = 1024;

 private:
  void write() {
    kind_->write(memory_.get(), staging_);
    if (how_ != sharing::none) std::ranges::copy(staging_, shared_.data() + shift_);
  }
  std::byte* base_of(std::uint32_t i) const {
    if (what_.tensors[i].how == lie::tied) i = what_.tensors[i].tied_to;
    bool const mapped = how_ == sharing::all || (how_ == sharing::partly && i % 2 == 0);
    return mapped ? shared_.data() + shift_ : memory_.get();
  }

  shared_memory shared_;
  sharing how_ = sharing::none;
  std::uint64_t shift_ = 0, shared_with_ = 0;
  layout what_;
  std::shared_ptr<memory_kind> kind_;
  std::vector<std::uint64_t> at_;
  std::vector<std::byte> staging_, image_;
  std::shared_ptr<std::byte> memory_;
};

/// An update's tensors by number, as sources and writers know them.
struct selection {
  selection(layout const& whole, std::vector<bool> const& sent) : what(whole) {
    for (std::uint32_t i = 0; i < sent.size(); ++i)
      if (sent[i]) numbers.push_back(i);
  }
  std::vector<tensor_info> manifest() const {
    std::vector<tensor_info> all;
    for (auto const i : numbers) all.push_back(what.tensors[i].sent);
    return all;
  }
  layout const& what;
  std::vector<std::uint32_t> numbers;
};

/// Makes each tensor when it is asked for.
class maker final : public tensor_source {
 public:
  maker(selection of, std::uint64_t seed, order const& now, std::shared_ptr<memory_kind> kind)
      : of_(std::move(of)), seed_(seed), now_(now), kind_(std::move(kind)) {}
  device where() const override { return kind_->where(); }
  std::vector<tensor_info> manifest() override { return of_.manifest(); }
  awaitable<source_tensor> next(std::uint32_t index) override {
    auto const executor = co_await asio::this_coro::executor;
    if (now_.goes_wrong == fault::source && index >= now_.bucket) {
      threw = true;
      throw std::runtime_error(thrown_words);
    }
    if (index % 3 == 0) co_await asio::post(executor, use_awaitable);
    auto const number = of_.numbers[index];
    auto plan = of_.what.tensors[number];
    make_source(seed_, now_.update, of_.what, number, image_);
    staging_.resize(source_bytes(plan));
    lay_out(plan, image_, staging_.data());
    auto memory = kind_->allocate(staging_.size());
    kind_->write(memory.get(), staging_);
    // The view's name is the layout's, which outlives the send.
    co_return source_tensor(source_view(of_.what.tensors[number], memory.get(), kind_->where()), memory);
  }
  bool threw = false;

 private:
  selection of_;
  std::uint64_t seed_;
  order now_;
  std::shared_ptr<memory_kind> kind_;
  std::vector<std::byte> image_, staging_;
};

/// Writes straight into the slots.
class filler final : public slot_writer {
 public:
  filler(selection of, std::uint64_t seed, order const& now, std::shared_ptr<memory_kind> kind)
      : of_(std::move(of)), seed_(seed), now_(now), kind_(std::move(kind)) {}
  device where() const override { return kind_->where(); }
  std::vector<tensor_info> manifest() override {
    bucket_ = 0;
    made_.reset();
    return of_.manifest();
  }
  awaitable<ready_after> fill(std::span<slot_piece const> pieces) override {
    auto const executor = co_await asio::this_coro::executor;
    if (now_.goes_wrong == fault::source && bucket_ >= now_.bucket) {
      threw = true;
      throw std::runtime_error(thrown_words);
    }
    if (bucket_++ % 3 == 0) co_await asio::post(executor, use_awaitable);
    for (auto const& piece : pieces) {
      if (made_ != piece.tensor) make_wanted(seed_, now_.update, of_.what, of_.numbers[piece.tensor], image_);
      made_ = piece.tensor;
      kind_->write(piece.data, std::span(image_).subspan(piece.tensor_offset, piece.bytes));
    }
    co_return ready_after();
  }
  bool threw = false;

 private:
  selection of_;
  std::uint64_t seed_;
  order now_;
  std::shared_ptr<memory_kind> kind_;
  std::uint32_t bucket_ = 0;
  std::optional<std::uint32_t> made_;
  std::vector<std::byte> image_;
};

struct leader {
  leader(role const& as, any_io_executor on)
      : is(as), executor(on), orders(on), strikes(on), watches(strikes), kind(memory_of(as.where)) {}
  role is;
  any_io_executor executor;
  ear orders;
  striker strikes;
  moves watches;
  std::shared_ptr<memory_kind> kind;
  std::deque<std::unique_ptr<block>> blocks; // the last one is the newest
  std::uint64_t sharings = 0;                // of new senders, and of those that have released all
  std::optional<sender> to;                  // after what it calls and reads

  block& block_for(std::uint64_t number) {
    auto const found =
        std::ranges::find_if(blocks, [&](auto const& one) { return one->what().number == number; });
    if (found != blocks.end()) {
      auto kept = std::move(*found);
      blocks.erase(found);
      blocks.push_back(std::move(kept));
    } else {
      if (blocks.size() == blocks_kept) blocks.pop_front();
      blocks.push_back(std::make_unique<block>(make_layout(is.seed, number, is.even), kind));
    }
    return *blocks.back();
  }
};

void open(leader& self, order const& how) {
  sender_options options;
  options.bucket_bytes(how.bucket_bytes).slots(how.slots).watched_by(&self.watches);
  options.silence_limit(milliseconds(how.silence_ms));
  self.to.emplace(self.executor, self.is.path, options);
  ++self.sharings;
  for (auto& one : self.blocks) one->prepared = {};
  say_only(tell::opened);
}

answer list_of(std::vector<connected_receiver> const& all) {
  answer said;
  said.what = tell::who;
  for (auto const& one : all) {
    if (said.peers == said.lines.size()) break;
    auto& line = said.lines[said.peers++];
    line.name = one.name.substr(0, one.name.find(' '));
    line.holds = one.holds_version;
    line.version = one.version;
  }
  return said;
}

/// Start, source free, done: and the trainer's next step in between.
awaitable<void> send_in_parts(leader& self, order const& now, block& from,
                              std::vector<tensor_view> const& views, attempt<send_report>& end) {
  attempt<sending> begun = co_await try_to(self.to->start(now.version, views));
  if (!begun.ok()) {
    end.error = begun.error, end.text = begun.text, end.report = begun.report;
    co_return;
  }
  auto const freed = co_await try_to(begun.value->source_free());
  if (freed.ok()) from.overwrite();
  auto done = begun.value->done();
  if (now.goes_wrong == fault::cancel)
    co_await cancel_after(std::chrono::microseconds(now.micros), std::move(done), end);
  else
    co_await keep_end(std::move(done), end);
}

awaitable<void> send_all(leader& self, order const& now, block& from, attempt<send_report>& end,
                         bool& threw) {
  std::vector<bool> sent(from.what().tensors.size(), true);
  if (now.partial) sent = part_of(from.what(), self.is.seed, now.update);
  auto const views = from.views(sent);
  selection const chosen(from.what(), sent);
  maker made(chosen, self.is.seed, now, self.kind);
  filler written(chosen, self.is.seed, now, self.kind);
  awaitable<send_report> work;
  switch (now.how) {
  case way::started: co_await send_in_parts(self, now, from, views, end); co_return;
  case way::prepared:
    if (!now.partial) {
      if (!from.prepared) from.prepared = self.to->prepare(views);
      work = self.to->send_weights(now.version, from.prepared);
      break;
    }
    [[fallthrough]];
  default: work = self.to->send_weights(now.version, views); break;
  case way::source: work = self.to->send_weights(now.version, made); break;
  case way::writer: work = self.to->send_weights(now.version, written); break;
  }
  if (now.goes_wrong == fault::cancel)
    co_await cancel_after(std::chrono::microseconds(now.micros), std::move(work), end);
  else
    co_await keep_end(std::move(work), end);
  threw = made.threw || written.threw;
}

awaitable<answer> send(leader& self, order now) {
  answer said;
  said.what = tell::report;
  said.update = now.update;
  auto& from = self.block_for(now.layout);
  from.lie_in(now.shared, now.moves ? 64 * (now.update % 16) : 0);
  from.share_with(*self.to, self.sharings);
  if (now.how != way::source && now.how != way::writer) from.fill(self.is.seed, now.update);
  attempt<send_report> end;
  self.strikes.arm(now);
  self.strikes.announced();
  co_await send_all(self, now, from, end, said.threw);
  // The memory is the trainer's again, whatever came of it.
  if (now.how != way::source && now.how != way::writer) from.overwrite();
  if (now.goes_wrong == fault::kill) self.strikes.strike();
  self.strikes.disarm();
  if (now.release) {
    co_await self.to->release_memory();
    ++self.sharings;
  }
  said.code = end.error.value();
  said.category = end.error ? end.error.category().name() : "";
  said.text = end.text;
  auto const& report = end.ok() ? end.value : end.report;
  if (report) {
    said.bytes = report->bytes;
    said.buckets = report->buckets;
    for (auto const& one : report->receivers) {
      if (said.peers == said.lines.size()) break;
      auto& line = said.lines[said.peers++];
      line.name = one.name.substr(0, one.name.find(' '));
      line.what = static_cast<std::uint8_t>(one.what);
      line.way = static_cast<std::uint8_t>(one.way);
      line.text = one.text;
    }
  }
  co_return said;
}

awaitable<void> obey(leader& self) {
  say_only(tell::ready);
  for (;;) {
    order const now = co_await self.orders.next();
    switch (now.what) {
    case verb::open: open(self, now); break;
    case verb::who: {
      auto const some = co_await try_to(self.to->wait_for_receivers(now.count, milliseconds(200)));
      static_cast<void>(some);
      auto const all = co_await self.to->receivers();
      say(control_fd, list_of(all));
      break;
    }
    case verb::send: {
      answer const said = co_await send(self, now);
      say(control_fd, said);
      break;
    }
    case verb::sample: say(control_fd, sampled(self.is.where)); break;
    case verb::close:
      co_await self.to->close();
      self.to.reset();
      say_only(tell::closed);
      break;
    case verb::quit:
      if (self.to) co_await self.to->close();
      co_return;
    default: throw std::runtime_error("an order that is none for a sender");
    }
  }
}

} // namespace

int lead(role const& as) {
  return run_process([&] {
    asio::io_context io(1);
    leader self(as, io.get_executor());
    std::exception_ptr failed;
    asio::co_spawn(io, obey(self), [&](std::exception_ptr error) {
      failed = error;
      if (error) io.stop();
    });
    io.run();
    self.to.reset();
    io.restart();
    if (!failed) io.run();
    if (failed) std::rethrow_exception(failed);
  });
}

} // namespace ropeway::soak
