// mmdet's ExpMomentumEMAHook update over all tensors in one parallel loop.
#include <ATen/MemoryOverlap.h>
#include <ATen/OpMathType.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "capability.h"
#include "checks.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

// Tensors of one dtype, packed, as if laid end to end.
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
    using Compute = at::opmath_type<T>;
    const auto keep = static_cast<Compute>(1 - momentum), take = static_cast<Compute>(momentum);
    size_t i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
    for (int64_t at = begin; at < end; at = ends[i++]) {
      const int64_t start = i ? ends[i - 1] : 0;
      T* __restrict__ average = tensors.average[i];
      const T* __restrict__ value = tensors.value[i];
      const int64_t stop = std::min(end, ends[i]) - start;
      for (int64_t k = at - start; k < stop; ++k) {
        const T kept = static_cast<T>(average[k] * keep);  // torch's mul_ and add_ round a half type twice
        average[k] = static_cast<T>(kept + value[k] * take);
      }
    }
  });
}

}  // namespace

void ema_update_(at::TensorList average, at::TensorList value, double momentum) {
  check_ema_update(average, value, momentum);
  for (size_t i = 0; i < average.size(); ++i) at::assert_no_partial_overlap(average[i], value[i]);
  if (average.size() > 1 && share_memory(average, value)) {  // one after the other: threads would meet there
    for (size_t i = 0; i < average.size(); ++i) ema_update_(average.slice(i, 1), value.slice(i, 1), momentum);
    return;
  }
  std::tuple<Tensors<float>, Tensors<double>, Tensors<at::Half>, Tensors<at::BFloat16>> of_type;
  std::vector<at::Tensor> values;                              // kept alive
  std::vector<std::pair<at::Tensor, at::Tensor>> copied_back;  // to, from
  for (size_t i = 0; i < average.size(); ++i) {
    at::Tensor a = average[i], v = value[i];
    if (!a.is_non_overlapping_and_dense()) {
      a = a.contiguous();
      copied_back.emplace_back(average[i], a);
    }
    if (a.strides() != v.strides()) v = at::empty_strided(a.sizes(), a.strides(), a.options()).copy_(v);
    values.push_back(v);
    switch (a.scalar_type()) {
      case at::kDouble:
        std::get<Tensors<double>>(of_type).append(a, v);
        break;
      case at::kHalf:
        std::get<Tensors<at::Half>>(of_type).append(a, v);
        break;
      case at::kBFloat16:
        std::get<Tensors<at::BFloat16>>(of_type).append(a, v);
        break;
      default:
        std::get<Tensors<float>>(of_type).append(a, v);
    }
  }
  std::apply([&](const auto&... tensors) { (update(tensors, momentum), ...); }, of_type);
  for (const auto& [to, from] : copied_back) to.copy_(from);
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(ema_update_)
}  // namespace yolox_ops
