// Which of the sender's tensors receivers can map, and what they are given to do so. Part of ropeway;
// Apache-2.0.
//
// Used on the sender's strand. A steady update asks for the identity of each allocation, and allocates
// nothing.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "memory/memory.hpp"
#include "memory/shared_block.hpp"
#include "plan/placement.hpp"
#include "protocol/sender_machine.hpp"
#include "session/layout.hpp"
#include "session/tensor_set.hpp"

namespace ropeway::session {

/// A placement, as receivers were or will be told of it.
struct exported_placement {
  std::uint64_t id = 0;
  std::shared_ptr<session::layout> layout;
  plan::placement what;
  std::vector<bool> needed; ///< by bucket, of those that map
  std::vector<protocol::update_facts::segment> segments;
  std::string not_mapped;                 ///< which tensors are not, and why, in words; empty if all are
  memory::backend::shared_region carrier; ///< made on first need
  std::uint64_t carrier_bytes = 0;
};

/// What exports some parts of a segment, on any thread.
struct part_source {
  std::shared_ptr<memory::backend> backend; // null: host memory
  std::shared_ptr<memory::shared_block const> block;
  memory::allocation what;
  memory::part_handle make() const;
};

class exports {
 public:
  explicit exports(std::shared_ptr<memory::backends> memory) : memory_(std::move(memory)) {}

  void share(std::shared_ptr<memory::shared_block const> block);
  /// Where these tensors lie now; the same as before if nothing has changed. Segments whose memory is gone,
  /// or was not used for long, are appended to `retired`: receivers must unmap them before they hear of the
  /// result. Never throws for memory that can't be mapped.
  std::shared_ptr<exported_placement> place(std::shared_ptr<detail::tensor_set const> const& tensors,
                                            std::vector<std::uint64_t>& retired);
  /// Forgets everything; all segments there were.
  std::vector<std::uint64_t> release();
  /// Parts [first, first + count) of a segment; fewer if it has not so many.
  std::vector<part_source> parts(std::uint64_t segment, std::uint32_t first, std::uint32_t count) const;

 private:
  /// An allocation that a tensor touches.
  struct known {
    memory::allocation what;
    std::shared_ptr<memory::backend> backend;
    std::shared_ptr<memory::shared_block const> block;
    bool joined = false; ///< a tensor goes on in the next one
    std::byte* end() const noexcept { return what.begin + what.bytes; }
  };
  struct exported_segment {
    plan::segment what;
    std::vector<known> parts;
    std::uint64_t last_used = 0;
  };
  struct shared {
    std::shared_ptr<memory::shared_block const> block;
    std::uint64_t identity;
  };
  known look_up(std::byte* address, device where);
  bool still_there(known const& one) const noexcept;
  bool same_as_last(std::shared_ptr<detail::tensor_set const> const& tensors) const noexcept;
  /// The index in `found` of the allocation where the tensor begins, or the reason why it can't be mapped.
  struct spot {
    std::size_t first = 0;
    char const* why_not = nullptr;
  };
  spot find(tensor_view const& tensor, std::vector<known>& found, std::byte*& low);
  std::uint32_t segment_of(std::vector<known> const& found, std::size_t first, std::size_t last,
                           plan::placement& into);
  void retire_unused(std::vector<std::uint64_t>& retired);

  std::shared_ptr<memory::backends> memory_;
  std::vector<shared> shared_;
  std::vector<exported_segment> segments_;
  std::vector<std::shared_ptr<exported_placement>> placements_; // the newest last; a handful
  std::shared_ptr<detail::tensor_set const> last_;              // that placements_.back() is of
  struct watched_memory {
    std::shared_ptr<memory::backend> of;
    std::vector<memory::allocation> what;
  };
  std::vector<watched_memory> watched_; // that they touch, of each device
  std::uint64_t next_segment_ = 1, next_placement_ = 1, next_identity_ = 1, updates_ = 0;
};

} // namespace ropeway::session
