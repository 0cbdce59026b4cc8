// Records updates as a timeline, for ui.perfetto.dev and other readers of Chrome's trace format.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

#include "ropeway/detail/visibility.hpp"
#include "ropeway/observer.hpp"

namespace ropeway {

/// An observer that writes down when each stage of each bucket began and ended. Several processes may save to
/// one file: they share the host's steady clock, so the file shows how packing and loading overlap.
///
///     ropeway::trace_recorder trace("trainer");
///     ropeway::sender sender(executor, path, ropeway::sender_options().watched_by(&trace));
///     ...
///     trace.save("timeline.json");
///
/// Each sender and receiver has a recorder of its own; all may save to one file.
///
/// Thread-safety: all members may be called from any thread. Costs some 100 bytes of memory a stretch, a few
/// for each bucket and update, until they are saved.
class ROPEWAY_API trace_recorder final : public observer {
 public:
  /// What is kept at most between two calls of save(); what comes then is counted and left out.
  static constexpr std::size_t default_limit = 1'000'000;

  /// `process` is how this process is called in the timeline, with its number.
  explicit trace_recorder(std::string process, std::size_t limit = default_limit);
  ~trace_recorder() override;
  trace_recorder(trace_recorder const&) = delete;
  trace_recorder& operator=(trace_recorder const&) = delete;

  /// Adds what was recorded to the JSON array in the file at `path`, which is made if it is missing, and
  /// forgets it. Holds a lock on the file meanwhile, so that processes may save at the same time.
  /// Throws transfer_error: `errc::bad_path` if there is something that is no trace, or an error of the
  /// system; nothing is forgotten then, and the file stays a trace.
  void save(std::filesystem::path const& path);
  /// How many stretches wait to be saved.
  std::size_t size() const;
  /// How many were left out for the limit, since the last save.
  std::size_t left_out() const;

  /// What it hears as an observer. @{
  void update_began(std::uint64_t version, std::uint64_t bytes, std::uint32_t buckets) override;
  void stage_ended(stage_span const& what) override;
  void update_ended(std::uint64_t version, bool committed) override;
  /// @}

 private:
  struct recorded;
  std::unique_ptr<recorded> state_;
};

} // namespace ropeway
