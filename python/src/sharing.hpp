// Objects that Python and the library's threads share. Part of ropeway; Apache-2.0.
#pragma once
#include <memory>

namespace ropeway::python {

/// Base of what a Python object stands for and a library's thread may be the last to let go of. nanobind
/// gives a std::shared_ptr argument of such a type as the one that C++ made (std::make_shared: bind it with
/// nb::new_, not nb::init). Of any other type it would give one that owns the Python object and takes the GIL
/// when it goes, which a library's thread must not wait for (keeping.hpp), and which ends the process while
/// the interpreter ends.
template <class T>
class shareable : public std::enable_shared_from_this<T> {
 protected:
  shareable() = default;
  ~shareable() = default;
};

} // namespace ropeway::python
