#include "ropeway/error.hpp"

namespace ropeway {
namespace {

char const* sentence(errc e) noexcept {
  switch (e) {
  case errc::ok: return "success";
  case errc::invalid_argument: return "invalid argument";
  case errc::busy: return "an operation of this kind is already running; await it first";
  case errc::not_open: return "the object is closed or was never connected";
  case errc::too_few_receivers:
    return "too few receivers committed the version; look at the outcomes in the report";
  case errc::duplicate_name: return "two tensors of one update have the same name";
  case errc::source_failed: return "the tensor source failed; the update was aborted";
  case errc::slots_held: return "every slot is held by buckets that were not released; release one first";
  case errc::destination_mismatch: return "destinations and update do not fit";
  case errc::torn:
    return "destinations hold parts of two versions; do not serve them until a whole version is committed";
  case errc::leased:
    return "readers still hold the weights that would be written; end their leases sooner, or allow more "
           "time";
  case errc::peer_gone: return "the peer ended or closed the connection";
  case errc::peer_silent: return "the peer said nothing for longer than the silence limit, or reads nothing";
  case errc::peer_refused: return "the peer refused";
  case errc::peer_aborted: return "the peer gave the update up";
  case errc::protocol_error: return "the peer broke the protocol and was dropped";
  case errc::version_mismatch:
    return "the peer speaks another protocol version; use the same ropeway release on both sides";
  case errc::not_permitted:
    return "not permitted; check the peer's user and the socket directory's owner and mode";
  case errc::unconfirmed: return "a commit was sent and its answer never came";
  case errc::group_incomplete: return "a member of the receiver's group is missing or failed";
  case errc::connect_timeout:
    return "no sender listened at the path in time; start the sender or raise the connect limit";
  case errc::handshake_timeout: return "the peer did not finish its handshake in time";
  case errc::commit_timeout: return "the peer did not finish its commit in time";
  case errc::loader_failed: return "loading a bucket failed in the embedder's code";
  case errc::no_device: return "no such device";
  case errc::device_failed: return "the device or its driver failed";
  case errc::out_of_memory: return "out of memory";
  case errc::not_reachable: return "the peer's memory can't be mapped here";
  case errc::bad_region: return "a file descriptor is not the shared memory it should be";
  case errc::address_in_use:
    return "a living sender listens at this path already; choose another path or end it";
  case errc::no_resources:
    return "descriptors or threads ran out; raise the limit that is named, or use fewer";
  case errc::bad_path: return "unsuitable socket path";
  case errc::bad_checkpoint: return "not a valid safetensors checkpoint";
  case errc::unsupported: return "not supported";
  case errc::overflow: return "a size or count is larger than allowed";
  case errc::digest_mismatch:
    return "bytes that arrived differ from those that were sent; look for faults of memory, device or "
           "driver, or "
           "for who writes to the tensors meanwhile, and send again";
  case errc::digest_missing:
    return "an update without digests where they are demanded; send with sender_options::digests";
  }
  return "unknown ropeway error";
}

class category final : public std::error_category {
 public:
  char const* name() const noexcept override { return "ropeway"; }
  std::string message(int value) const override { return sentence(static_cast<errc>(value)); }
};

} // namespace

std::string_view name(errc e) noexcept {
  switch (e) {
  case errc::ok: return "ok";
  case errc::invalid_argument: return "invalid_argument";
  case errc::busy: return "busy";
  case errc::not_open: return "not_open";
  case errc::too_few_receivers: return "too_few_receivers";
  case errc::duplicate_name: return "duplicate_name";
  case errc::source_failed: return "source_failed";
  case errc::slots_held: return "slots_held";
  case errc::destination_mismatch: return "destination_mismatch";
  case errc::torn: return "torn";
  case errc::leased: return "leased";
  case errc::digest_mismatch: return "digest_mismatch";
  case errc::digest_missing: return "digest_missing";
  case errc::peer_gone: return "peer_gone";
  case errc::peer_silent: return "peer_silent";
  case errc::peer_refused: return "peer_refused";
  case errc::peer_aborted: return "peer_aborted";
  case errc::protocol_error: return "protocol_error";
  case errc::version_mismatch: return "version_mismatch";
  case errc::not_permitted: return "not_permitted";
  case errc::unconfirmed: return "unconfirmed";
  case errc::group_incomplete: return "group_incomplete";
  case errc::connect_timeout: return "connect_timeout";
  case errc::handshake_timeout: return "handshake_timeout";
  case errc::commit_timeout: return "commit_timeout";
  case errc::loader_failed: return "loader_failed";
  case errc::no_device: return "no_device";
  case errc::device_failed: return "device_failed";
  case errc::out_of_memory: return "out_of_memory";
  case errc::not_reachable: return "not_reachable";
  case errc::bad_region: return "bad_region";
  case errc::address_in_use: return "address_in_use";
  case errc::bad_path: return "bad_path";
  case errc::no_resources: return "no_resources";
  case errc::bad_checkpoint: return "bad_checkpoint";
  case errc::unsupported: return "unsupported";
  case errc::overflow: return "overflow";
  }
  return "unknown";
}

std::error_category const& ropeway_category() noexcept {
  static category const instance;
  return instance;
}

std::error_code make_error_code(errc e) noexcept { return {static_cast<int>(e), ropeway_category()}; }

} // namespace ropeway
