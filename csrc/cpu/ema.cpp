// mmdet's ExpMomentumEMAHook update over all tensors in one parallel loop.
#include <algorithm>
#include <vector>

#include "capability.h"
#include "checks.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

// Tensors of one dtype, as if laid end to end.
template <typename T>
struct Tensors {
  std::vector<T*> average;
  std::vector<const T*> value;
  std::vector<int64_t> end{};

  void append(const at::Tensor& a, const at::Tensor& v) {
    average.push_back(a.mutable_data_ptr<T>());
    value.push_back(v.const_data_ptr<T>());
    end.push_back((end.empty() ? 0 : end.back()) + a.numel());
  }
};

// Each thread takes one run of as many elements as the others, whatever tensors it crosses: it streams
// through memory, and the many small tensors of a network cost no launch each.
template <typename T>
void update(const Tensors<T>& tensors, double momentum) {
  const std::vector<int64_t>& ends = tensors.end;
  at::parallel_for(0, ends.empty() ? 0 : ends.back(), 1 << 15, [&](int64_t begin, int64_t end) {
    // Not captured: stores to the average might change what a reference refers to, for all the compiler
    // knows.
    const T keep = static_cast<T>(1 - momentum), take = static_cast<T>(momentum);
    size_t i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
    for (int64_t at = begin; at < end; at = ends[i++]) {
      const int64_t start = i ? ends[i - 1] : 0;
      T* __restrict__ average = tensors.average[i];
      const T* __restrict__ value = tensors.value[i];
      const int64_t stop = std::min(end, ends[i]) - start;
      for (int64_t k = at - start; k < stop; ++k) average[k] = average[k] * keep + value[k] * take;
    }
  });
}

}  // namespace

void ema_update_(at::TensorList average, at::TensorList value, double momentum) {
  check_ema_update(average, value, momentum);
  Tensors<float> floats;
  Tensors<double> doubles;
  for (size_t i = 0; i < average.size(); ++i) {
    const at::Tensor &a = average[i], &v = value[i];
    const bool same_layout = a.is_non_overlapping_and_dense() && a.strides() == v.strides();
    if (same_layout && a.scalar_type() == at::kFloat) {
      floats.append(a, v);
    } else if (same_layout && a.scalar_type() == at::kDouble) {
      doubles.append(a, v);
    } else {
      a.mul_(1 - momentum).add_(v, momentum);
    }
  }
  update(floats, momentum);
  update(doubles, momentum);
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(ema_update_)
}  // namespace yolox_ops
