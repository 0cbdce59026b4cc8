// What a sender digests, and the table that takes the sums to its receivers. Part of ropeway; Apache-2.0.
//
// Used on the sender's strand, but for what says otherwise. One table serves update after update: it is
// written when the last one's receivers have compared, or are out of it.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "plan/digests.hpp"
#include "session/digester.hpp"
#include "session/layout.hpp"

namespace ropeway::session {

class source_digests {
 public:
  /// For an update of this layout, the number of the table that will hold its digests: a new one if the last
  /// has another size. Throws transfer_error.
  std::uint64_t begin(std::shared_ptr<layout> const& of, memory::backends& memory);
  memory::backend::shared_region const& table() const noexcept { return table_; }
  std::uint64_t table_bytes() const noexcept { return table_bytes_; }

  /// Where tensors lie, or in which device's slots they are packed: what a list is made for.
  struct purpose {
    std::shared_ptr<layout> of;
    std::shared_ptr<plan::chunk_table const> chunks;
    std::vector<tensor_view> views; ///< empty: in slots
    device slots;
  };
  /// The list that was kept, if it is for these tensors where they lie now; null if it must be made.
  std::shared_ptr<digest_list> known(std::span<tensor_view const> views) const noexcept;
  std::shared_ptr<digest_list> known(device slots) const noexcept;
  purpose purpose_of(std::span<tensor_view const> views, device slots) const;
  /// Slow, on any thread. Throws transfer_error.
  static std::shared_ptr<digest_list> make(memory::backends& memory, purpose const& of);
  void keep(purpose of, std::shared_ptr<digest_list> list);
  /// What was kept, for somebody else to let go of.
  std::shared_ptr<digest_list> take();

  /// Puts what the list's last run has brought into the table; what it comes to.
  digest128 write(digest_list const& list);
  /// The same of an update without bytes.
  digest128 write_nothing();

 private:
  std::shared_ptr<layout> layout_;
  std::shared_ptr<plan::chunk_table const> chunks_;
  memory::backend::shared_region table_;
  std::uint64_t table_id_ = 0, table_bytes_ = 0;
  purpose made_for_;
  std::shared_ptr<digest_list> list_;
  std::vector<digest128> sums_; // kept, so that a steady update allocates nothing
};

} // namespace ropeway::session
