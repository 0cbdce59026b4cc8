// What takes longest to read of every file that waits for something, read once per target. A build need not
// have it
// (-Db_pch=false): every file includes what it uses, and CI's builds with clang do without.
// Part of ropeway; Apache-2.0.
#include <algorithm>
#include <array>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "ropeway/ropeway.hpp"
