#include <array>
#include <nvtx3/nvToolsExt.h>
#include <string>

#include "session/profiler.hpp"

namespace ropeway::session {
namespace {

/// Null handles where no profiler is attached, which is settled at the first call.
struct profiled {
  nvtxDomainHandle_t domain = nvtxDomainCreateA("ropeway");
  /// Registered, so that beginning a range makes no string; the last of a side is its updates'.
  std::array<std::array<nvtxStringHandle_t, all_stages.size() + 1>, 2> names{};

  profiled() {
    if (!domain) return;
    for (side const whose : {side::sender, side::receiver}) {
      std::string const verb = whose == side::sender ? "send" : "receive";
      auto& of_side = names[std::size_t(whose)];
      for (update_stage const what : all_stages)
        of_side[std::size_t(what)] =
            nvtxDomainRegisterStringA(domain, (verb + " " + std::string(name(what))).c_str());
      of_side.back() = nvtxDomainRegisterStringA(domain, verb.c_str());
    }
  }
};

profiled const& profiler() {
  static profiled const made;
  return made;
}

std::uint64_t begin_range(side whose, std::size_t what, std::optional<std::uint64_t> payload) noexcept {
  auto const& to = profiler();
  if (!to.domain) return 0;
  nvtxEventAttributes_t range{};
  range.version = NVTX_VERSION;
  range.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  range.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
  range.message.registered = to.names[std::size_t(whose)][what];
  if (payload) {
    range.payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64;
    range.payload.ullValue = *payload;
  }
  return nvtxDomainRangeStartEx(to.domain, &range);
}

} // namespace

void profiler_range::begin(profiler_name called, std::optional<std::uint32_t> bucket) noexcept {
  end();
  id_ = begin_range(called.whose, std::size_t(called.what), bucket);
}

void profiler_range::begin_update(side whose, std::uint64_t version) noexcept {
  end();
  id_ = begin_range(whose, all_stages.size(), version);
}

void profiler_range::end_range(std::uint64_t id) noexcept { nvtxDomainRangeEnd(profiler().domain, id); }

} // namespace ropeway::session
