// What is fuzzed: each target takes any bytes, and throws `broken` when a promise does not hold.
// Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <span>
#include <stdexcept>

namespace ropeway::fuzz {

using input = std::span<std::uint8_t const>;

void message(input bytes);   ///< a datagram, as src/protocol/codec.hpp reads it
void manifest(input bytes);  ///< a manifest, and the copies that follow from it
void placement(input bytes); ///< where tensors lie in a sender's memory
void header(input bytes);    ///< a safetensors file
void index(input bytes);     ///< a model.safetensors.index.json
void datagram(input bytes);  ///< messages with descriptors through a real socket, and memory out of them
void sender(input bytes);    ///< any events for the sender's machine
void receiver(input bytes);  ///< any events for the receiver's machine

struct broken : std::logic_error {
  using std::logic_error::logic_error;
};
inline void promise(bool kept, char const* what) {
  if (!kept) throw broken(what);
}

} // namespace ropeway::fuzz
