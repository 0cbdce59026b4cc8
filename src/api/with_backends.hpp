// Senders and receivers with memory backends of the caller's, for tests. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>
#include <string>

#include "memory/memory.hpp"
#include "ropeway/receiver.hpp"
#include "ropeway/sender.hpp"

namespace ropeway::detail {

sender make_sender(any_io_executor executor, std::string path, sender_options options,
                   std::shared_ptr<memory::backends> memory);
receiver make_receiver(any_io_executor executor, receiver_options options, std::shared_ptr<memory::backends> memory);

}  // namespace ropeway::detail
