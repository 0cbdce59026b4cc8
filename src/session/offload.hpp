// Slow jobs off the embedder's loop: mapping, registering, reading manifests, unmapping. Part of ropeway;
// Apache-2.0.
#pragma once
#include <asio/post.hpp>
#include <asio/thread_pool.hpp>
#include <exception>
#include <memory>
#include <optional>
#include <unistd.h>
#include <utility>

#include "ropeway/error.hpp"
#include "wire/strand.hpp"

namespace ropeway::session {

using wire::strand;

/// One thread, started on first use; jobs run in order. The destructor waits for the job that runs and
/// forgets the others: keep each bounded.
class offload {
 public:
  ~offload() {
    if (!pool_) return;
    if (::getpid() != owner_) { // a child that was forked has the object and not the thread
      (void)pool_.release();
      return;
    }
    pool_->stop();
    pool_->join();
  }

  /// Throws if there is no thread to be had. Runs `job()` on the thread, then `then(error, result)` on the
  /// strand; `error` is what the job threw.
  template <class Job, class Then>
  void run(strand const& back, Job job, Then then) {
    using result = decltype(job());
    struct answer {
      Then then;
      std::exception_ptr error;
      result value{};
    };
    // Handed over as a whole, so that this thread keeps no part of what the strand may be the last to hold: a
    // closure that has captured something const is copied where it should be moved.
    auto said = std::make_shared<answer>(answer{std::move(then), nullptr});
    auto work = [back, job = std::optional<Job>(std::move(job)), said = std::move(said)]() mutable {
      try {
        said->value = (*job)();
      } catch (...) { said->error = std::current_exception(); }
      job.reset(); // it may own what is slow to destroy: let go of it here
      auto tell = [said = std::move(said)] { said->then(std::move(said->error), std::move(said->value)); };
      asio::post(back, std::move(tell));
    };
    asio::post(pool(), std::move(work));
  }

  /// Destroys something on the thread.
  void dispose(std::shared_ptr<void const> thing) {
    if (!thing) return;
    auto destroy = [thing = std::move(thing)]() mutable { thing.reset(); };
    asio::post(pool(), std::move(destroy));
  }

 private:
  asio::thread_pool& pool() {
    try {
      if (!pool_) pool_ = std::make_unique<asio::thread_pool>(1);
    } catch (std::system_error const& error) {
      throw transfer_error(error.code(),
                           "no thread for mapping memory can be started; raise RLIMIT_NPROC, or the limit of "
                           "processes of the container");
    }
    return *pool_;
  }
  std::unique_ptr<asio::thread_pool> pool_;
  pid_t owner_ = ::getpid();
};

/// What a caught exception says, as a transfer_error.
inline transfer_error as_transfer_error(std::exception_ptr const& error, errc otherwise) {
  try {
    std::rethrow_exception(error);
  } catch (transfer_error const& known) { return known; } catch (std::system_error const& system) {
    return transfer_error(system.code(), system.what());
  } catch (std::bad_alloc const&) {
    return transfer_error(errc::out_of_memory, "host memory ran out");
  } catch (std::exception const& other) { return transfer_error(otherwise, other.what()); } catch (...) {
    return transfer_error(otherwise, "an exception of unknown type");
  }
}

/// What an error says, without the sentence of its code where that goes along anyway.
inline std::string words_of(transfer_error const& error) {
  std::string text = error.what();
  std::string const sentence = ": " + error.code().message();
  if (error.code().category() == ropeway_category() && text.ends_with(sentence))
    text.resize(text.size() - sentence.size());
  return text;
}

/// The errc of an error, for the wire: what ran out, if something did; `otherwise` for all others of other
/// categories.
inline errc as_errc(std::error_code code, errc otherwise) noexcept {
  if (code.category() == ropeway_category()) return static_cast<errc>(code.value());
  if (code == std::errc::not_enough_memory || code == std::errc::no_space_on_device)
    return errc::out_of_memory;
  for (auto const ran_out : {std::errc::too_many_files_open, std::errc::too_many_files_open_in_system,
                             std::errc::resource_unavailable_try_again, std::errc::no_buffer_space})
    if (code == ran_out) return errc::no_resources;
  return otherwise;
}

} // namespace ropeway::session
