// Atomic access to one int64 of a buffer that processes share: what Python itself lacks to order "the pixels
// are there" before "and may be read". For numpy arrays over a memory map, but any buffer will do.
#include "stamps.h"

#include <cstdint>
#include <string>

namespace py = pybind11;

namespace yolox_ops {
namespace {

constexpr const char* kStamps = "stamps must be a contiguous one-dimensional buffer of int64, got ";

// The address of stamps[index].
int64_t* at(const py::buffer& stamps, py::ssize_t index, bool write) {
  const py::buffer_info info = stamps.request();
  // Or it may lie across two cache lines, where no access is atomic.
  if (reinterpret_cast<uintptr_t>(info.ptr) % sizeof(int64_t)) {
    throw py::type_error("stamps must be aligned to 8 bytes");
  }
  if (!info.item_type_is_equivalent_to<int64_t>()) {
    throw py::type_error(kStamps + ("format '" + info.format + "'"));
  }
  if (info.ndim != 1) throw py::type_error(kStamps + std::to_string(info.ndim) + " dimensions");
  const py::ssize_t count = info.shape[0];
  if (count > 1 && info.strides[0] != info.itemsize) {
    throw py::type_error(kStamps + ("a stride of " + std::to_string(info.strides[0]) + " bytes"));
  }
  if (write && info.readonly) throw py::type_error("stamps must be writable");
  if (index < 0 || index >= count) {
    throw py::index_error("index must be in [0, " + std::to_string(count) + "), got " +
                          std::to_string(index));
  }
  return static_cast<int64_t*>(info.ptr) + index;
}

int64_t load_acquire(const py::buffer& stamps, py::ssize_t index) {
  return __atomic_load_n(at(stamps, index, false), __ATOMIC_ACQUIRE);
}

void store_release(const py::buffer& stamps, py::ssize_t index, int64_t value) {
  __atomic_store_n(at(stamps, index, true), value, __ATOMIC_RELEASE);
}

bool compare_exchange(const py::buffer& stamps, py::ssize_t index, int64_t expected, int64_t desired) {
  return __atomic_compare_exchange_n(at(stamps, index, true), &expected, desired, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE);
}

}  // namespace

void define_stamps(py::module_& m) {
  m.def("load_acquire", &load_acquire, py::arg("stamps"), py::arg("index"),
        "stamps[index]; who reads a value this way sees all that was written before its store_release.");
  m.def("store_release", &store_release, py::arg("stamps"), py::arg("index"), py::arg("value"),
        "stamps[index] = value, after all that this thread wrote before.");
  m.def(
      "compare_exchange", &compare_exchange, py::arg("stamps"), py::arg("index"), py::arg("expected"),
      py::arg("desired"),
      "Sets stamps[index] to desired if it is expected, in one step; whether it was. Acquires and releases.");
}

}  // namespace yolox_ops
