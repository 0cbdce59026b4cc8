// Python objects that the library's threads hold on to. Part of ropeway; Apache-2.0.
#pragma once
#include <Python.h>

#include <utility>

namespace ropeway::python {

/// One reference to a Python object that may be given up on any thread. Made, and looked at, with the GIL
/// held.
///
/// A thread of the library must not wait for the GIL: the thread that has it may be waiting for the library.
/// So what is given up without it is put aside, and let go of by the interpreter as soon as it can.
class kept {
 public:
  kept() = default;
  explicit kept(PyObject* object) noexcept : object_(object) { Py_XINCREF(object); }
  kept(kept&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  kept& operator=(kept&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~kept();
  PyObject* get() const noexcept { return object_; }

 private:
  PyObject* object_ = nullptr;
};

/// Whether this thread has the GIL (of the main interpreter).
bool has_gil() noexcept;

/// Lets go of what was put aside. With the GIL held.
void let_go();

} // namespace ropeway::python
