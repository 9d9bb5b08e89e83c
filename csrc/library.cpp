// Every operator's schema, once.
#include <torch/library.h>

#include "cpu/capability.h"

namespace yolox_ops {

// A schema that is too long for a line has its tensors, its numbers and its result in lines of their own.
TORCH_LIBRARY(yolox_ops, m) {
  m.def("cpu_capability", &cpu_capability_name);
  m.def("box_iou(Tensor boxes1, Tensor boxes2, str mode, bool aligned, float eps) -> Tensor");
  m.def(
      "box_iou_backward("
      "Tensor grad, Tensor boxes1, Tensor boxes2, "
      "str mode, bool aligned, float eps) "
      "-> (Tensor, Tensor)");
  m.def(
      "simota_cost("
      "Tensor scores, Tensor centers, Tensor boxes, Tensor gt_boxes, Tensor gt_labels, "
      "float center_radius, float cls_weight, float iou_weight) "
      "-> (Tensor, Tensor)");
  m.def(
      "simota_assign("
      "Tensor scores, Tensor centers, Tensor boxes, Tensor gt_boxes, Tensor gt_labels, Tensor num_gts, "
      "float center_radius, int candidate_topk, float cls_weight, float iou_weight, bool keep_every_gt) "
      "-> (Tensor, Tensor)");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold) -> Tensor");
  m.def(
      "yolox_detect("
      "Tensor cls_logits, Tensor obj_logits, Tensor boxes, "
      "float score_threshold, float iou_threshold, int max_detections) "
      "-> (Tensor, Tensor, Tensor)");
  // The part of yolox_detect that accelerators leave to the host. It has no Python function.
  m.def(
      "yolox_select("
      "Tensor scores, Tensor labels, Tensor boxes, "
      "float score_threshold, float iou_threshold, int max_detections) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "mixup_blend("
      "Tensor image, Tensor partner, "
      "int[2] canvas, int[2] scaled, int[2] offset, bool flip, int pad, bool ipp) "
      "-> Tensor");
  m.def(
      "batch_norm_silu("
      "Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "bool training, float momentum, float eps) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_silu_backward("
      "Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor invstd, bool training) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("ema_update_(Tensor(a!)[] average, Tensor[] value, float momentum) -> ()");
}

}  // namespace yolox_ops
