// mmdet's ExpMomentumEMAHook update over lists of tensors.
#include "checks.h"
#include "register.h"

namespace yolox_ops::npu {

void ema_update_(at::TensorList average, at::TensorList value, double momentum) {
  check_ema_update(average, value, momentum);
  at::_foreach_mul_(average, 1 - momentum);
  at::_foreach_add_(average, value, momentum);
}

}  // namespace yolox_ops::npu

namespace yolox_ops {
YOLOX_OPS_REGISTER_NPU(ema_update_)
}  // namespace yolox_ops
