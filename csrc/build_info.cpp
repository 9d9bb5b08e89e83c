// yolox_ops._C: the facts of this build, and atomic stamps. It links neither torch nor the operators, so that
// it can be imported, and the versions compared, even when the operators no longer fit the torch that is
// installed.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "stamps.h"

namespace {

// CMake passes lists as one string of words.
pybind11::tuple words(const char* text) {
  std::istringstream stream(text);
  pybind11::list list;
  for (std::string word; stream >> word;) {
    list.append(word);
  }
  return pybind11::tuple(list);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What yolox_ops was built from and for, and atomic access to stamps that processes share.";
  m.attr("torch_version") = YOLOX_OPS_TORCH_VERSION;
  m.attr("compiler") = YOLOX_OPS_COMPILER;
  m.attr("cpu_capabilities") = words(YOLOX_OPS_CPU_CAPABILITIES);
  m.attr("backends") = words(YOLOX_OPS_BACKENDS);
  m.attr("sanitizers") = YOLOX_OPS_SANITIZERS;
  yolox_ops::define_stamps(m);
}
