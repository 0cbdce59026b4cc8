// The few things that a benchmark does with a GPU itself: the plain copies that ropeway is compared with,
// data made and compared where it lies, and a load that reads memory as serving a model does. The driver is
// loaded at run time; there is no CUDA header here. Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace ropeway::bench {

class gpu {
 public:
  /// Throws `errc::no_device`.
  static gpu& of(int ordinal);
  gpu(gpu const&) = delete;
  ~gpu();
  std::string name() const;

  /// As cudaMalloc does.
  std::byte* allocate(std::uint64_t bytes);
  void free(std::byte* memory) noexcept;

  /// Lets copies go to another GPU without a detour.
  void reach(gpu& peer);
  /// Queues a copy between memory of this GPU and of one that it reaches; `wait` sees the end of all of them.
  void copy(std::byte* to, std::byte const* from, std::uint64_t bytes);
  void wait();

  /// Whether `fill` and `right_words` can be called: not in a build without nvcc.
  static bool has_kernels() noexcept;
  /// Words number 0, 1, ... of a stream of random words. Queued.
  void fill(std::byte* memory, std::uint64_t bytes, std::uint64_t seed);
  /// Queues a comparison with parts of such a stream: of bytes at `first`, in runs of `run` bytes that lie
  /// `step` apart there.
  void compare(std::byte const* memory, std::uint64_t bytes, std::uint64_t seed, std::uint64_t first,
               std::uint64_t run, std::uint64_t step);
  /// How many words were right in all comparisons since the last call. Waits.
  std::uint64_t right_words();

  /// A stream of the highest priority with which to read memory.
  class reader;

 private:
  struct state;
  explicit gpu(int ordinal);
  std::unique_ptr<state> state_;
};

class gpu::reader {
 public:
  explicit reader(gpu& on);
  reader(reader const&) = delete;
  ~reader();
  /// Queues a kernel that reads all of it.
  void read(std::byte const* memory, std::uint64_t bytes);
  void wait();

 private:
  gpu& on_;
  void* stream_ = nullptr;
  std::byte* sink_ = nullptr;
};

/// Memory of a GPU, as cudaMalloc gives it.
class device_block {
 public:
  device_block(gpu& on, std::uint64_t bytes) : on_(on), data_(on.allocate(bytes)), bytes_(bytes) {}
  device_block(device_block const&) = delete;
  ~device_block() { on_.free(data_); }
  std::byte* data() const noexcept { return data_; }
  std::uint64_t size() const noexcept { return bytes_; }

 private:
  gpu& on_;
  std::byte* data_;
  std::uint64_t bytes_;
};

} // namespace ropeway::bench
