// How fast a CUDA queue copies, against cuMemcpyDtoD of the same bytes in the same run. Part of ropeway;
// Apache-2.0.
//
//   copy-kernel [ordinal] [GiB]       lists of many shapes
//   copy-kernel [ordinal] models      prepared lists of whole models, in several shapes, against each other
//
// Each line is the median of several runs; "ratio" is the plain copy's time over this one's. The source is
// filled with random bytes before; of models, the ends of many tensors are compared after.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>
#include <vector>

#include "memory/cuda/cuda.hpp"
#include "memory/cuda/driver.hpp"
#include "memory/cuda/handles.hpp"
#include "memory/cuda/prepared.hpp"
#include "memory/cuda/queue.hpp"
#include "memory/cuda/region.hpp"
#include "ropeway/error.hpp"

using namespace ropeway;
using memory::copy_op;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void until_done(memory::queue& queue) {
  auto const ticket = queue.mark();
  for (;;) {
    auto const seen = queue.poll();
    if (seen.error) throw transfer_error(seen.error, "the device failed");
    if (seen.completed >= ticket) return;
  }
}

struct bench {
  memory::queue& queue;
  double plain = 0; // seconds for a byte

  void line(char const* name, double bytes, std::function<void()> const& work) {
    work();
    until_done(queue);
    std::vector<double> times;
    for (int i = 0; i < 7; ++i) {
      double const begin = now();
      work();
      until_done(queue);
      times.push_back(now() - begin);
    }
    double const time = median(times);
    if (plain == 0) plain = time / bytes;
    std::printf("%-58s %9.3f ms %8.1f GB/s  ratio %.3f\n", name, time * 1e3, bytes / time / 1e9,
                plain * bytes / time);
    std::fflush(stdout);
  }
};

/// Bytes of the tensors of a model in bf16 (Qwen3 8B; 20 layers of Qwen3 30B-A3B).
std::vector<std::uint64_t> dense_model() {
  std::uint64_t const h = 4096, inter = 12288, q = 32 * 128, kv = 8 * 128, vocab = 151936;
  std::vector<std::uint64_t> sizes{vocab * h, h, vocab * h};
  for (int layer = 0; layer < 36; ++layer)
    sizes.insert(sizes.end(),
                 {q * h, kv * h, kv * h, h * q, 128, 128, inter * h, inter * h, h * inter, h, h});
  for (auto& size : sizes) size *= 2;
  return sizes;
}
std::vector<std::uint64_t> experts_model() {
  std::uint64_t const h = 2048, inter = 768, q = 32 * 128, kv = 4 * 128, vocab = 151936;
  std::vector<std::uint64_t> sizes{vocab * h, h, vocab * h};
  for (int layer = 0; layer < 20; ++layer) {
    sizes.insert(sizes.end(), {q * h, kv * h, kv * h, h * q, 128, 128, 128 * h, h, h});
    for (int expert = 0; expert < 128; ++expert) sizes.insert(sizes.end(), {inter * h, inter * h, h * inter});
  }
  for (auto& size : sizes) size *= 2;
  return sizes;
}

/// A model's tensors where an allocator would put them, on the other side in another order.
struct placed_model {
  struct tensor {
    std::uint64_t from, to, bytes;
  };
  std::vector<tensor> tensors;
  std::uint64_t bytes = 0, span = 0;

  explicit placed_model(std::vector<std::uint64_t> const& sizes) {
    for (std::uint64_t const size : sizes) {
      tensors.push_back({span, 0, size});
      span += (size + 511) / 512 * 512;
      bytes += size;
    }
    for (auto& one : tensors) one.to = span - one.from - (one.bytes + 511) / 512 * 512;
  }
};

struct variant {
  char const* name;
  memory::cuda::list_shape shape;
};
constexpr variant variants[] = {
    {"64 KiB, 1 block an SM", {64 << 10, 1}},    {"64 KiB, 2 blocks an SM", {64 << 10, 2}},
    {"128 KiB, 2 blocks an SM", {128 << 10, 2}}, {"256 KiB, 2 blocks an SM", {256 << 10, 2}},
    {"1 MiB, 2 blocks an SM", {1 << 20, 2}},     {"32 KiB, a block each", {32 << 10, 0}},
    {"64 KiB, a block each", {64 << 10, 0}},     {"128 KiB, a block each", {128 << 10, 0}},
    {"256 KiB, a block each", {256 << 10, 0}},
};

int copy_models(int ordinal) {
  auto const table = memory::cuda::load_driver();
  auto const owner = std::make_shared<memory::cuda::gpu>(table, ordinal);
  memory::cuda::scope here(*owner);
  auto const queue = memory::cuda::make_queue(owner);
  placed_model const models[] = {placed_model(dense_model()), placed_model(experts_model())};
  std::uint64_t const room = std::max(models[0].span, models[1].span) + (1 << 20);
  auto const from = memory::cuda::make_region(owner, room), to = memory::cuda::make_region(owner, room);
  std::byte* const a = from.memory->data();
  std::byte* const b = to.memory->data();
  auto op = [&](std::byte const* source, std::byte* target, std::uint64_t bytes) {
    copy_op one;
    one.from = source, one.to = target, one.bytes = bytes;
    one.from_where = one.to_where = owner->where();
    return one;
  };
  auto run = [&](copy_op const& one) {
    queue->copy({&one, 1});
    until_done(*queue);
  };
  // Random bytes, doubled until they fill the source; then each byte has another neighbour far away.
  std::uint64_t const seed_bytes = 64 << 20;
  std::vector<std::byte> seed(seed_bytes);
  std::uint64_t state = 1;
  for (std::uint64_t i = 0; i < seed_bytes; i += 8) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    std::memcpy(seed.data() + i, &state, 8);
  }
  copy_op first = op(seed.data(), a, seed_bytes);
  first.from_where = device::host();
  run(first);
  for (std::uint64_t at = seed_bytes; at < room; at += seed_bytes - 4096)
    run(op(a + at % 4096, a + at, std::min(room - at, seed_bytes - 4096)));

  for (placed_model const& model : models) {
    std::printf("%zu tensors, %.1f GB\n", model.tensors.size(), static_cast<double>(model.bytes) / 1e9);
    std::vector<copy_op> ops, halves;
    for (auto const& one : model.tensors) {
      ops.push_back(op(a + one.from, b + one.to, one.bytes));
      // A shard of the columns, as the second of two ranks takes it.
      copy_op half = ops.back();
      half.rank = 2, half.from_element = half.to_element = 2;
      half.extent = {std::max<std::uint64_t>(one.bytes / 8192, 1), 2048};
      if (one.bytes < 8192) half.extent[1] = one.bytes / 4;
      half.from += 2 * half.extent[1];
      half.from_stride = {static_cast<std::int64_t>(4 * half.extent[1]), 2};
      half.to_stride = {static_cast<std::int64_t>(2 * half.extent[1]), 2};
      halves.push_back(half);
    }
    std::size_t const step = model.tensors.size() / 300 + 1;
    std::vector<std::byte> seen(512 * (model.tensors.size() / step + 1));
    auto check = [&] {
      // Both ends of some tensors, of the source and of the target.
      std::vector<copy_op> ends;
      std::byte* at = seen.data();
      for (std::size_t i = 0; i < model.tensors.size(); i += step) {
        auto const& one = model.tensors[i];
        std::uint64_t const bytes = std::min<std::uint64_t>(one.bytes, 128);
        for (std::byte* side : {a + one.from, b + one.to}) {
          ends.push_back(op(side, at, bytes));
          ends.push_back(op(side + one.bytes - bytes, at + 128, bytes));
          at += 256;
        }
      }
      for (auto& one : ends) one.to_where = device::host();
      queue->copy(ends);
      until_done(*queue);
      for (std::byte const* side = seen.data(); side != seen.data() + seen.size(); side += 512)
        if (std::memcmp(side, side + 256, 256) != 0)
          throw transfer_error(errc::device_failed, "a tensor did not arrive");
    };
    bench lines{*queue};
    double const all = static_cast<double>(model.bytes);
    memory::cuda::stream const plain(owner);
    lines.line("one cuMemcpyDtoD", all, [&] {
      table->check(table->cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(b), reinterpret_cast<CUdeviceptr>(a),
                                        model.bytes, plain.get()),
                   "copy");
      while (table->cuStreamQuery(plain.get()) == CUDA_ERROR_NOT_READY) {}
    });
    lines.line("a list that is not prepared", all, [&] { queue->copy(ops); });
    check();
    for (variant const& one : variants) {
      run(op(a + 8192, b, model.span - 8192)); // spoils it
      memory::cuda::prepared const list(owner, ops, one.shape);
      lines.line(one.name, all, [&] { queue->repeat(list); });
      check();
    }
    memory::cuda::prepared const list(owner, ops), boxes(owner, halves);
    for (std::uint32_t blocks : {8U, 16U, 32U, 64U, 128U, 264U}) {
      std::string const name = "as it is by default, held to " + std::to_string(blocks) + " blocks";
      lines.line(name.c_str(), all, [&] { queue->repeat(list, {0, ~std::uint64_t{0}, blocks}); });
    }
    std::uint64_t const eighth = list.units() / 8 + 1;
    lines.line("in eight portions", all, [&] {
      for (std::uint64_t at = 0; at < list.units(); at += eighth) queue->repeat(list, {at, eighth, 0});
    });
    lines.line("half of the columns of each tensor", static_cast<double>(boxes.bytes()),
               [&] { queue->repeat(boxes); });
    double const begin = now();
    { memory::cuda::prepared const again(owner, ops); }
    std::printf("preparing the list and letting it go: %.1f ms\n", (now() - begin) * 1e3);
  }
  return 0;
}

} // namespace

int main(int count, char** arguments) try {
  int const ordinal = count > 1 ? std::atoi(arguments[1]) : 0;
  if (count > 2 && std::string_view(arguments[2]) == "models") return copy_models(ordinal);
  std::uint64_t const gib = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 4;
  std::uint64_t const bytes = gib << 30;
  auto const table = memory::cuda::load_driver();
  auto const backend = memory::cuda::make_backend(table, ordinal);
  auto const where = backend->where();
  auto const from = backend->make_region(bytes + 4096), to = backend->make_region(bytes + 4096);
  auto const queue = backend->make_queue();
  std::byte const* const a = from.memory->data();
  std::byte* const b = to.memory->data();
  CUdevice id = 0;
  CUcontext context = nullptr;
  table->check(table->cuDeviceGet(&id, ordinal), "device");
  table->check(table->cuDevicePrimaryCtxRetain(&context, id), "context");
  table->check(table->cuCtxPushCurrent(context), "context");
  void* host = nullptr;
  std::uint64_t const host_bytes = std::uint64_t{1} << 30;
  table->check(table->cuMemHostAlloc(&host, host_bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
               "host");
  auto* const pinned = static_cast<std::byte*>(host);
  std::vector<std::byte> pageable(host_bytes / 4, std::byte{7});
  std::uint64_t state = 1;
  for (std::uint64_t i = 0; i < host_bytes; i += 8) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    *reinterpret_cast<std::uint64_t*>(pinned + i) = state;
  }
  CUstream stream = nullptr;
  table->check(table->cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), "stream");

  auto op = [&](std::uint64_t from_at, std::uint64_t to_at, std::uint64_t size) {
    copy_op one;
    one.from = a + from_at, one.to = b + to_at, one.bytes = size;
    one.from_where = one.to_where = where;
    return one;
  };
  auto pieces = [&](std::uint64_t size, std::uint64_t total, std::uint64_t skew = 0) {
    std::vector<copy_op> ops;
    std::uint64_t const n = total / size;
    // Not in the order in which they lie.
    for (std::uint64_t i = 0; i < n; ++i) ops.push_back(op(i * 7919 % n * size + skew, i * size, size));
    return ops;
  };
  auto list = [&](std::vector<copy_op> ops) { return [&queue, ops = std::move(ops)] { queue->copy(ops); }; };
  auto box = [&](std::uint64_t rows, std::uint64_t columns, std::int64_t row, std::int64_t column,
                 std::uint16_t from_element, std::uint16_t to_element, memory::conversion convert) {
    copy_op one = op(0, 0, 0);
    one.rank = 2, one.convert = convert;
    one.from_element = from_element, one.to_element = to_element;
    one.extent = {rows, columns};
    one.from_stride = {row, column};
    one.to_stride = {static_cast<std::int64_t>(columns) * to_element, to_element};
    return std::vector<copy_op>{one};
  };
  for (std::uint64_t at = 0; at < bytes; at += host_bytes) { // random bytes
    copy_op one = op(0, 0, 0);
    one.from = pinned, one.from_where = device::host();
    one.to = from.memory->data() + at, one.bytes = host_bytes;
    queue->copy({&one, 1});
  }
  until_done(*queue);

  bench run{*queue};
  double const all = static_cast<double>(bytes);
  run.line("cuMemcpyDtoD", all, [&] {
    table->check(table->cuMemcpyAsync(reinterpret_cast<CUdeviceptr>(b), reinterpret_cast<CUdeviceptr>(a),
                                      bytes, stream),
                 "copy");
    while (table->cuStreamQuery(stream) == CUDA_ERROR_NOT_READY) {}
  });
  run.line("one piece", all, list({op(0, 0, bytes)}));
  run.line("pieces of 64 MiB", all, list(pieces(64 << 20, bytes)));
  run.line("pieces of 1 MiB", all, list(pieces(1 << 20, bytes)));
  run.line("pieces of 256 KiB", all, list(pieces(256 << 10, bytes)));
  run.line("pieces of 16 KiB", all, list(pieces(16 << 10, bytes)));
  run.line("20,000 pieces of 2 KiB", 20000.0 * 2048, list(pieces(2048, 20000 * 2048)));
  run.line("pieces of 1 MiB, 8 bytes askew", all, list(pieces(1 << 20, bytes, 8)));
  run.line("pieces of 1 MiB, 4 bytes askew", all, list(pieces(1 << 20, bytes, 4)));
  run.line("pieces of 1 MiB, 2 bytes askew", all, list(pieces(1 << 20, bytes, 2)));
  std::vector<std::vector<copy_op>> buckets;
  for (std::uint64_t at = 0; at + (64 << 20) <= bytes; at += 64 << 20) {
    buckets.emplace_back();
    for (std::uint64_t i = 0; i < 64; ++i)
      buckets.back().push_back(op(at + (i << 20), at + (i << 20), 1 << 20));
  }
  run.line("buckets of 64 MiB, each marked", all, [&] {
    for (auto const& bucket : buckets) {
      queue->copy(bucket);
      (void)queue->mark();
    }
  });
  using memory::conversion;
  run.line("every second 8 KiB row", all / 2,
           list(box(bytes / 16384, 4096, 16384, 2, 2, 2, conversion::none)));
  run.line("every second 512 byte row", all / 2,
           list(box(bytes / 1024, 256, 1024, 2, 2, 2, conversion::none)));
  run.line("transposed bf16, 32768 columns (1 GiB)", 1 << 30,
           list(box(16384, 32768, 2, 16384 * 2, 2, 2, conversion::none)));
  run.line("f32 to bf16 (bytes read)", all,
           list(box(bytes / 16384, 4096, 16384, 4, 4, 2, conversion::f32_to_bf16)));
  run.line("f32 to f16 (bytes read)", all,
           list(box(bytes / 16384, 4096, 16384, 4, 4, 2, conversion::f32_to_f16)));
  run.line("bf16 to f32 (bytes written)", all,
           list(box(bytes / 16384, 4096, 8192, 2, 2, 4, conversion::bf16_to_f32)));
  auto from_host = [&](std::byte const* source, std::uint64_t size, std::uint64_t total) {
    auto ops = pieces(size, total);
    for (auto& one : ops) {
      one.from = source + (one.from - a);
      one.from_where = device::host();
    }
    return ops;
  };
  double const host_all = static_cast<double>(host_bytes);
  run.line("from pinned memory, pieces of 1 MiB", host_all, list(from_host(pinned, 1 << 20, host_bytes)));
  run.line("from pinned memory, pieces of 64 KiB", host_all, list(from_host(pinned, 64 << 10, host_bytes)));
  run.line("from pinned memory, pieces of 16 KiB", host_all, list(from_host(pinned, 16 << 10, host_bytes)));
  run.line("from pinned memory, pieces of 2 KiB", host_all / 8,
           list(from_host(pinned, 2 << 10, host_bytes / 8)));
  run.line("from pageable memory, pieces of 1 MiB", host_all / 4,
           list(from_host(pageable.data(), 1 << 20, host_bytes / 4)));

  std::vector<double> calls, whole;
  auto const small = pieces(1 << 20, 64 << 20);
  for (int i = 0; i < 200; ++i) {
    double const begin = now();
    queue->copy(small);
    (void)queue->mark();
    calls.push_back(now() - begin);
    until_done(*queue);
    whole.push_back(now() - begin);
  }
  std::printf("a list of 64 pieces: %.1f us in copy and mark, %.1f us until seen done\n", median(calls) * 1e6,
              median(whole) * 1e6);
  return 0;
} catch (std::exception const& error) {
  std::printf("%s\n", error.what());
  return 77;
}
