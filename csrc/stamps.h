#pragma once
#include <pybind11/pybind11.h>

namespace yolox_ops {

// Adds load_acquire, store_release and compare_exchange.
void define_stamps(pybind11::module_& m);

}  // namespace yolox_ops
