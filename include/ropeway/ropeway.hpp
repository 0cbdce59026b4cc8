// All of ropeway. Part of ropeway; Apache-2.0.
#pragma once
#include "ropeway/asio.hpp"
#include "ropeway/checkpoint.hpp"
#include "ropeway/cuda.hpp"
#include "ropeway/destinations.hpp"
#include "ropeway/error.hpp"
#include "ropeway/observer.hpp"
#include "ropeway/options.hpp"
#include "ropeway/receiver.hpp"
#include "ropeway/report.hpp"
#include "ropeway/sender.hpp"
#include "ropeway/source.hpp"
#include "ropeway/tensor.hpp"
