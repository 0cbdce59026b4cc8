// Errors and reports as Python sees them. Part of ropeway; Apache-2.0.
#pragma once
#include <nanobind/nanobind.h>

#include <string>
#include <vector>

#include "ropeway/cuda.hpp"
#include "ropeway/options.hpp"
#include "ropeway/report.hpp"
#include "ropeway/status.hpp"

namespace nb = nanobind;

namespace ropeway {
struct connected_receiver;
}

namespace ropeway::python {

/// Of a Python string. A name that is no UTF-8 (a lone surrogate) raises UnicodeEncodeError.
std::string text_of(nb::handle text);
/// Of bytes that should be UTF-8: what is not is replaced, for foreign words must not raise.
nb::object text(std::string_view words);

/// Values of ropeway/_reports.py and ropeway/_errors.py.
/// @{
nb::object to_python(send_report const& report);
nb::object to_python(load_report const& report);
nb::object to_python(weights_status const& status);
nb::object to_python(receiver_status const& status);
nb::object to_python(connected_receiver const& receiver);
/// @}

/// From what ropeway/_tensors.py makes of a stream or an event: None, or (kind, handle, ordinal, owner).
ready_after ready_from(nb::handle when);

/// From keyword arguments that were given; Python has checked their names.
/// @{
sender_options sender_options_from(nb::dict const& knobs);
receiver_options receiver_options_from(nb::dict const& knobs);
/// @}

/// Looks up what all of this needs of Python. Once, when the module is made.
void learn_words();
/// Makes ropeway's exceptions arrive as ropeway.TransferError.
void translate_errors();

} // namespace ropeway::python
