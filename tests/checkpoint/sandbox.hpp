// A child process with a system that refuses things. Part of ropeway; Apache-2.0.
#pragma once
#include <cstdint>
#include <functional>

namespace ropeway::test {

/// Runs `body` in a forked child and returns what it returned, or 1000 + the signal that ended it. Call it
/// only while there are no other threads.
int in_child(std::function<int()> body);

/// In the child: system call `number` fails with `error` from now on. With `mask`, only when argument
/// `argument` has all bits of the mask.
void refuse_call(int number, int error, unsigned argument = 0, std::uint32_t mask = 0);

/// In the child: gives `capability` (CAP_...) up. True for who never had it, too.
bool drop_capability(unsigned capability);

/// In the child: puts a file system of `bytes` bytes at `directory`. False if that is not permitted here.
bool mount_small(char const* directory, unsigned bytes);

} // namespace ropeway::test
