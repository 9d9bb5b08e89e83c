// The input checks that all backends share: each names the argument, what was expected and what came.
#pragma once
#include <ATen/ATen.h>

#include <string_view>

namespace yolox_ops {

inline void check_boxes(const at::Tensor& boxes, const char* name, const char* count) {
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4, name, " must be [", count, ", 4], got ",
                    boxes.sizes());
}

inline void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be ", shape, ", got ", tensor.sizes());
}

inline void check_floating(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_TYPE(at::isFloatingType(tensor.scalar_type()), name, " must be floating point, got torch.",
                   c10::toString(tensor.scalar_type()));
}

inline void check_int64(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kLong, name, " must be int64, got ", tensor.dtype().name());
}

inline void check_fraction(double value, const char* name) {
  TORCH_CHECK_VALUE(value >= 0 && value <= 1, name, " must be in [0, 1], got ", value);
}

inline void check_not_negative(double value, const char* name) {
  TORCH_CHECK_VALUE(value >= 0, name, " must be at least 0, got ", value);
}

// `count` labels of a CPU tensor.
inline void check_labels(const int64_t* labels, int64_t count, int64_t classes, const char* name) {
  for (int64_t j = 0; j < count; ++j) {
    TORCH_CHECK_VALUE(labels[j] >= 0 && labels[j] < classes, name, " must be in [0, ", classes, "), got ",
                      labels[j]);
  }
}

// The kernels read float32 or float64, packed; half types are computed in float32.
inline at::Tensor as_float(const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

inline at::ScalarType compute_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace yolox_ops
