#include "cli/digest.hpp"

#include <asio/error.hpp>

#include "base/digest.hpp"
#include "ropeway/error.hpp"

namespace ropeway::cli {

std::vector<digest128> digests(weights const& of, host_window& window, std::atomic<bool> const& stop) {
  std::vector<digest128> all;
  for (auto const& tensor : of.entries()) {
    digest128 sum;
    std::uint64_t done = 0;
    window.read(tensor.data, tensor.bytes, [&](std::span<std::byte const> piece) {
      if (stop) throw transfer_error(asio::error::operation_aborted, "interrupted");
      sum += digest_of_run(piece.data(), done, piece.size());
      done += piece.size();
    });
    all.push_back(sum);
  }
  return all;
}

digest128 whole(weights const& of, std::span<digest128 const> tensors) {
  update_digest all;
  for (std::size_t i = 0; i < tensors.size(); ++i) all.add(identity_of(of.entries()[i].info), tensors[i]);
  return all.value();
}

std::string digest(weights const& of, host_window& window, std::atomic<bool> const& stop) {
  return to_string(whole(of, digests(of, window, stop)));
}

} // namespace ropeway::cli
