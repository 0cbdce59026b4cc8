// Senders and receivers with memory backends of the caller's, for tests: detail::make_sender and
// make_receiver, which are declared beside the classes that they make. Part of ropeway; Apache-2.0.
#pragma once
#include "memory/memory.hpp"
#include "ropeway/receiver.hpp"
#include "ropeway/sender.hpp"
