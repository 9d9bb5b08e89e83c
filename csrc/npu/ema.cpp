// mmdet's ExpMomentumEMAHook update over lists of tensors.
#include "checks.h"
#include "register.h"

namespace yolox_ops::npu {

void ema_update_(at::TensorList average, at::TensorList value, double momentum) {
  check_ema_update(average, value, momentum);
  // Then each is multiplied and added to before the next, not all multiplied first.
  if (average.size() > 1 && share_memory(average, value)) {
    for (size_t i = 0; i < average.size(); ++i) ema_update_(average.slice(i, 1), value.slice(i, 1), momentum);
    return;
  }
  at::_foreach_mul_(average, 1 - momentum);
  at::_foreach_add_(average, value, momentum);
}

}  // namespace yolox_ops::npu

namespace yolox_ops {
YOLOX_OPS_REGISTER_NPU(ema_update_)
}  // namespace yolox_ops
