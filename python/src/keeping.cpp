#include "keeping.hpp"

#include <atomic>
#include <mutex>
#include <vector>

namespace ropeway::python {
namespace {

struct aside {
  std::mutex mutex;
  std::vector<PyObject*> objects;
  std::atomic<bool> any = false;
};
// Never destroyed: a thread of the library may still give something up while the process ends.
aside& put_aside() {
  static auto* const all = new aside;
  return *all;
}

int let_go_soon(void*) {
  let_go();
  return 0;
}

} // namespace

bool has_gil() noexcept {
  // Not PyGILState_Check: that says yes to everybody once the process has made a second interpreter.
  PyThreadState* const own = Py_IsInitialized() ? PyGILState_GetThisThreadState() : nullptr;
#if PY_VERSION_HEX >= 0x030d0000
  return own && own == PyThreadState_GetUnchecked();
#else
  return own && own == _PyThreadState_UncheckedGet();
#endif
}

void let_go() {
  auto& all = put_aside();
  if (!all.any.load(std::memory_order_acquire)) return;
  std::vector<PyObject*> objects;
  {
    std::scoped_lock const lock(all.mutex);
    objects.swap(all.objects);
    all.any.store(false, std::memory_order_release);
  }
  for (auto* const object : objects) Py_DECREF(object); // runs Python code: not under the lock
}

kept::~kept() {
  if (!object_ || !Py_IsInitialized()) return; // an interpreter that has ended took the object along
  if (has_gil()) {
    Py_DECREF(object_);
    return;
  }
  auto& all = put_aside();
  {
    std::scoped_lock const lock(all.mutex);
    all.objects.push_back(object_);
    all.any.store(true, std::memory_order_release);
  }
  // Its queue may be full: then the next call into the library does it.
  static_cast<void>(Py_AddPendingCall(&let_go_soon, nullptr));
}

} // namespace ropeway::python
