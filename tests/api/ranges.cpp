// The library that a profiler would inject: NVTX loads what NVTX_INJECTION64_PATH names, and calls this.
#include "ranges.hpp"

#include <map>
#include <mutex>
#include <nvtx3/nvToolsExt.h>

namespace ropeway::testing {
namespace {

std::mutex mutex;
std::vector<std::string> names; // of domains and strings; a handle is 1 + the place here
std::map<std::uint64_t, recorded_range> ranges;
std::uint64_t count = 0;

template <class Handle>
Handle keep(char const* name) {
  std::scoped_lock const lock(mutex);
  names.emplace_back(name);
  return reinterpret_cast<Handle>(names.size());
}
template <class Handle>
std::string name_of(Handle handle) {
  auto const at = reinterpret_cast<std::uintptr_t>(handle);
  return at == 0 || at > names.size() ? "unknown" : names[at - 1];
}

nvtxDomainHandle_t NVTX_API create_domain(char const* name) { return keep<nvtxDomainHandle_t>(name); }
nvtxStringHandle_t NVTX_API register_string(nvtxDomainHandle_t, char const* name) {
  return keep<nvtxStringHandle_t>(name);
}

nvtxRangeId_t NVTX_API start(nvtxDomainHandle_t domain, nvtxEventAttributes_t const* what) {
  std::scoped_lock const lock(mutex);
  recorded_range range;
  range.domain = name_of(domain);
  range.name =
      what->messageType == NVTX_MESSAGE_TYPE_REGISTERED ? name_of(what->message.registered) : "unregistered";
  if (what->payloadType == NVTX_PAYLOAD_TYPE_UNSIGNED_INT64) range.payload = what->payload.ullValue;
  range.began = ++count;
  return ranges.emplace(count, std::move(range)).first->first;
}

void NVTX_API end(nvtxDomainHandle_t, nvtxRangeId_t id) {
  std::scoped_lock const lock(mutex);
  auto& range = ranges[id];
  if (range.ended) range.name += " (ended twice)";
  range.ended = ++count;
}

} // namespace

std::vector<recorded_range> recorded_ranges() {
  std::scoped_lock const lock(mutex);
  std::vector<recorded_range> all;
  for (auto const& [id, range] : ranges) all.push_back(range);
  return all;
}

void forget_ended_ranges() {
  std::scoped_lock const lock(mutex);
  std::erase_if(ranges, [](auto const& one) { return one.second.ended.has_value(); });
}

} // namespace ropeway::testing

extern "C" __attribute__((visibility("default"))) int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t of);

/// Takes the calls that are of interest here; the others stay what they are, which is nothing.
extern "C" int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t of) {
  using namespace ropeway::testing;
  auto const* const table = static_cast<NvtxExportTableCallbacks const*>(of(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable calls = nullptr;
  unsigned size = 0;
  if (!table || !table->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &calls, &size)) return 0;
  if (size <= NVTX_CBID_CORE2_DomainCreateA) return 0;
  *calls[NVTX_CBID_CORE2_DomainCreateA] = reinterpret_cast<NvtxFunctionPointer>(create_domain);
  *calls[NVTX_CBID_CORE2_DomainRegisterStringA] = reinterpret_cast<NvtxFunctionPointer>(register_string);
  *calls[NVTX_CBID_CORE2_DomainRangeStartEx] = reinterpret_cast<NvtxFunctionPointer>(start);
  *calls[NVTX_CBID_CORE2_DomainRangeEnd] = reinterpret_cast<NvtxFunctionPointer>(end);
  return 1;
}
