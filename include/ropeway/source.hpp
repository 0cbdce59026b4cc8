// Tensors that are made while they are sent, one by one. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ropeway/asio.hpp"
#include "ropeway/cuda.hpp"
#include "ropeway/detail/visibility.hpp"
#include "ropeway/tensor.hpp"

namespace ropeway {

/// One tensor from a source. The library reads `view` after `when`, and lets go of `keep_alive` once it has
/// seen its last copy from it complete; whatever owns the memory belongs there.
class source_tensor {
 public:
  source_tensor() = default; ///< no tensor: a place to assign to
  /// `tensor`, kept in place by `owner` and readable after `ready`.
  explicit source_tensor(tensor_view tensor, std::shared_ptr<void const> owner = {}, ready_after ready = {})
      : view(tensor), keep_alive(std::move(owner)), when(ready) {}
  tensor_view view;                       ///< name, dtype and shape as announced; memory on any device
  std::shared_ptr<void const> keep_alive; ///< may be empty: the memory then lives until the send completes
  ready_after when;                       ///< before which no byte is read
};

/// Announces tensors first and makes them when they are needed, so that a trainer which gathers its shards on
/// the fly never holds the whole model: at most the tensors of the buckets that are being packed are alive.
/// One source can be sent again and again. Its members are called on the sender's strand, one at a time, and
/// must not block; must outlive the operation. What they throw aborts the update with `errc::source_failed`
/// and their words.
class ROPEWAY_API tensor_source {
 public:
  virtual ~tensor_source() = default;
  /// Where buckets are packed: the device on which most of the tensors will lie.
  virtual device where() const { return device::host(); }
  /// All tensors, in the order in which `next` will give them, with the dtype and shape that receivers see.
  /// Called once for each version, before the first `next`.
  virtual std::vector<tensor_info> manifest() = 0;
  /// The tensor with this index; asked for in order, once a version, and never for one of zero bytes. It must
  /// be the one that was announced. Cancelled (all types) when the update is given up.
  virtual awaitable<source_tensor> next(std::uint32_t index) = 0;
};

/// A part of a tensor that is to be written: `bytes` bytes of the tensor's contiguous row-major image, from
/// `tensor_offset` on. Aligned to 256 bytes in memory.
struct slot_piece {
  std::uint32_t tensor = 0;        ///< index into what `slot_writer::manifest` gave
  std::uint64_t tensor_offset = 0; ///< of its first byte in the tensor
  std::uint64_t bytes = 0;         ///< how many are to be written
  std::byte* data = nullptr;       ///< memory on `slot_writer::where`
};

/// Announces tensors and writes them straight into the slots of the ring, which saves the copy that packs
/// them: for tensors that are computed for the update anyway (gathered, merged, quantised). One writer can be
/// sent again and again. Its members are called on the sender's strand, one at a time, and must not block;
/// must outlive the operation. What they throw aborts the update with `errc::source_failed` and their words.
class ROPEWAY_API slot_writer {
 public:
  virtual ~slot_writer() = default;
  /// Where the slots lie that are to be written.
  virtual device where() const { return device::host(); }
  /// All tensors, in order, with the dtype and shape that receivers see. Called once for each version, before
  /// the first `fill`.
  virtual std::vector<tensor_info> manifest() = 0;
  /// Writes every byte of a bucket's pieces; asked for bucket by bucket, in order. What it returns says after
  /// what work they are written (nothing: now). Cancelled (all types) when the update is given up or
  /// `sender_options::source_limit` has passed. When it ends cancelled, or throws, nothing may be writing
  /// into them any more: their memory is used again.
  virtual awaitable<ready_after> fill(std::span<slot_piece const> pieces) = 0;
};

/// A source from functions, for tensors that can be made at once.
ROPEWAY_API std::unique_ptr<tensor_source> make_source(std::vector<tensor_info> manifest,
                                                       std::function<source_tensor(std::uint32_t index)> next,
                                                       device where = device::host());

} // namespace ropeway
