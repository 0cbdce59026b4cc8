// The tensors of one send, looked at once: where they lie, and the layout they have. Part of ropeway;
// Apache-2.0.
#pragma once
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "ropeway/detail/operation.hpp"
#include "ropeway/source.hpp"
#include "session/layout.hpp"
#include "session/tensor_record.hpp"

namespace ropeway::detail {

/// Immutable once collected. Names are those of the layout's manifest: the views' own may be gone.
class tensor_set {
 public:
  std::shared_ptr<session::layout> layout; ///< null on the fly: known when the manifest was stated
  std::vector<tensor_view> views;          ///< by tensor index; empty on the fly
  session::tensor_record record;           ///< the same, for the next send to compare with
  tensor_source* source = nullptr;         ///< yields them one by one
  slot_writer* writer = nullptr;           ///< writes them into the slots itself
  device where;  ///< where buckets are packed: of the first CUDA tensor, else the host
  failure error; ///< what is wrong with the tensors, for the send to report

  bool on_the_fly() const noexcept { return source != nullptr || writer != nullptr; }
};

/// Makes sets, and keeps two: the last one, which the next send is compared with and is, as a rule, the same
/// (looking through thousands of views once more, or copying them, takes longer than announcing an update);
/// and one that nobody holds any more, for it is as much memory as the C library gives back to the system, to
/// be mapped and filled with zeros again at the next send. Thread-safe.
class set_pool : public std::enable_shared_from_this<set_pool> {
 public:
  std::shared_ptr<tensor_set> make() {
    std::unique_ptr<tensor_set> made;
    {
      std::scoped_lock lock(mutex_);
      made = std::exchange(spare_, nullptr);
    }
    if (!made) made = std::make_unique<tensor_set>();
    return {made.release(), [pool = weak_from_this()](tensor_set* done) {
              std::unique_ptr<tensor_set> own(done);
              if (auto const self = pool.lock()) self->keep(std::move(own));
            }};
  }

  /// What was collected last without an error; null before the first.
  std::shared_ptr<tensor_set> last() const {
    std::scoped_lock lock(mutex_);
    return last_;
  }
  void keep_last(std::shared_ptr<tensor_set> one) {
    std::scoped_lock lock(mutex_);
    std::swap(last_, one); // what was there ends after the lock
  }

 private:
  void keep(std::unique_ptr<tensor_set> one) {
    auto views = std::move(one->views);
    auto record = std::move(one->record);
    views.clear();
    record.clear();
    *one = {};
    one->views = std::move(views);
    one->record = std::move(record);
    std::scoped_lock lock(mutex_);
    std::swap(spare_, one); // what was there ends after the lock
  }
  mutable std::mutex mutex_;
  std::unique_ptr<tensor_set> spare_;
  std::shared_ptr<tensor_set> last_;
};

} // namespace ropeway::detail
