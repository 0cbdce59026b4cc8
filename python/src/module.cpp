#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>
#include <poll.h>

#include <chrono>

#include "keeping.hpp"
#include "mailbox.hpp"
#include "operation.hpp"
#include "tensors.hpp"
#include "words.hpp"

namespace ropeway::python {

void operation::give_up() {
  if (loop_->forked()) return;
  task_->stop();
  without_gil const released;
  task_->wait();
}

bool operation::wait(double seconds) {
  using clock = std::chrono::steady_clock;
  refuse_children(*loop_);
  try {
    auto const box = std::make_shared<mailbox>();
    if (!task_->tell(box)) return true;
    auto const limit = clock::now() + std::chrono::duration_cast<clock::duration>(
                                          std::chrono::duration<double>(std::min(seconds, 1e9)));
    for (;;) {
      int sleep = -1;
      if (seconds >= 0) {
        auto const left = std::chrono::ceil<std::chrono::milliseconds>(limit - clock::now()).count();
        sleep = static_cast<int>(std::clamp<std::int64_t>(left, 0, 1 << 30));
      }
      pollfd readable{box->descriptor(), POLLIN, 0};
      int found = 0;
      {
        without_gil const released;
        found = poll(&readable, 1, sleep);
      }
      if (found > 0) return true;
      if (found == 0 && seconds >= 0 && clock::now() >= limit) return task_->ended();
      if (found < 0 && PyErr_CheckSignals() != 0) throw nb::python_error();
    }
  } catch (...) {
    // Here, and not in Python, where the next signal may be heard before it is stopped.
    give_up();
    throw;
  }
}

void bind_operations(nb::module_& module) {
  nb::class_<mailbox>(module, "Mailbox")
      .def(nb::new_([] { return std::make_shared<mailbox>(); }))
      .def("fileno", &mailbox::descriptor)
      .def("take", &mailbox::take);
  nb::class_<operation>(module, "Operation")
      .def_prop_ro("id", &operation::id)
      .def("ended", &operation::ended)
      .def("stop", &operation::stop)
      .def("tell", &operation::tell, nb::arg("mailbox"))
      .def("wait", &operation::wait, nb::arg("seconds"))
      .def("give_up", &operation::give_up)
      .def("result", &operation::result);
}

} // namespace ropeway::python

NB_MODULE(_core, module) {
  nb::set_leak_warnings(false); // objects of a program that ends with them are no mistake
  ropeway::python::learn_words();
  ropeway::python::translate_errors();
  ropeway::python::bind_tensors(module);
  ropeway::python::bind_operations(module);
  ropeway::python::bind_sending(module);
  ropeway::python::bind_lending(module);
  ropeway::python::bind_receiving(module);
  module.def("let_go", &ropeway::python::let_go);
}
