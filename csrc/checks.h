// The input checks that all backends share: each names the argument, what was expected and what came.
#pragma once
#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

namespace yolox_ops {

inline void check_boxes(const at::Tensor& boxes, const char* name, const char* count) {
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4, name, " must be [", count, ", 4], got ",
                    boxes.sizes());
}

inline void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be ", shape, ", got ", tensor.sizes());
}

inline bool is_half(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

// torch has floating-point types of 8 bits and fewer too.
inline bool is_floating(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || is_half(type);
}

inline void check_floating(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_TYPE(is_floating(tensor.scalar_type()), name,
                   " must be floating point of 16, 32 or 64 bits, got torch.",
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

inline void check_box_iou(const at::Tensor& boxes1, const at::Tensor& boxes2, c10::string_view mode,
                          bool aligned, double eps) {
  TORCH_CHECK_VALUE(mode == "iou" || mode == "iof" || mode == "giou", "mode must be iou, iof or giou, got ",
                    mode);
  check_boxes(boxes1, "boxes1", "M");
  check_boxes(boxes2, "boxes2", aligned ? "M" : "N");
  check_floating(boxes1, "boxes1");
  TORCH_CHECK_TYPE(boxes1.scalar_type() == boxes2.scalar_type(), "boxes2 must have the dtype of boxes1, got ",
                   boxes2.dtype().name(), " and ", boxes1.dtype().name());
  TORCH_CHECK_VALUE(!aligned || boxes1.size(0) == boxes2.size(0), "boxes2 must be ", boxes1.sizes(),
                    " when aligned, got ", boxes2.sizes());
  check_not_negative(eps, "eps");
}

inline void check_box_iou_backward(const at::Tensor& grad, const at::Tensor& boxes1, const at::Tensor& boxes2,
                                   c10::string_view mode, bool aligned, double eps) {
  check_box_iou(boxes1, boxes2, mode, aligned, eps);
  if (aligned) {
    check_shape(grad, "grad", {boxes1.size(0)});
  } else {
    check_shape(grad, "grad", {boxes1.size(0), boxes2.size(0)});
  }
}

inline void check_classes(const at::Tensor& scores, const at::Tensor& gt_labels) {
  TORCH_CHECK_VALUE(scores.size(-1) > 0 || gt_labels.numel() == 0, "scores must have a class, got ",
                    scores.sizes());
}

inline void check_simota_cost(const at::Tensor& scores, const at::Tensor& centers, const at::Tensor& boxes,
                              const at::Tensor& gt_boxes, const at::Tensor& gt_labels, double cls_weight,
                              double iou_weight) {
  TORCH_CHECK_VALUE(scores.dim() == 2, "scores must be [P, C], got ", scores.sizes());
  check_shape(centers, "centers", {scores.size(0), 4});
  check_shape(boxes, "boxes", {scores.size(0), 4});
  check_boxes(gt_boxes, "gt_boxes", "G");
  check_shape(gt_labels, "gt_labels", {gt_boxes.size(0)});
  check_int64(gt_labels, "gt_labels");
  check_classes(scores, gt_labels);
  check_floating(scores, "scores");
  check_floating(centers, "centers");
  check_floating(boxes, "boxes");
  check_floating(gt_boxes, "gt_boxes");
  check_not_negative(cls_weight, "cls_weight");
  check_not_negative(iou_weight, "iou_weight");
}

inline void check_simota_assign(const at::Tensor& scores, const at::Tensor& centers, const at::Tensor& boxes,
                                const at::Tensor& gt_boxes, const at::Tensor& gt_labels,
                                const at::Tensor& num_gts, int64_t candidate_topk, double cls_weight,
                                double iou_weight) {
  TORCH_CHECK_VALUE(scores.dim() == 3, "scores must be [B, P, C], got ", scores.sizes());
  TORCH_CHECK_VALUE(gt_boxes.dim() == 3 && gt_boxes.size(0) == scores.size(0) && gt_boxes.size(2) == 4,
                    "gt_boxes must be [", scores.size(0), ", G, 4], got ", gt_boxes.sizes());
  const int64_t batch = scores.size(0), num_priors = scores.size(1);
  check_shape(centers, "centers", {num_priors, 4});
  check_shape(boxes, "boxes", {batch, num_priors, 4});
  check_shape(gt_labels, "gt_labels", {batch, gt_boxes.size(1)});
  check_shape(num_gts, "num_gts", {batch});
  check_floating(scores, "scores");
  check_floating(centers, "centers");
  check_floating(boxes, "boxes");
  check_floating(gt_boxes, "gt_boxes");
  check_int64(gt_labels, "gt_labels");
  check_classes(scores, gt_labels);
  check_int64(num_gts, "num_gts");
  check_not_negative(cls_weight, "cls_weight");
  check_not_negative(iou_weight, "iou_weight");
  TORCH_CHECK_VALUE(candidate_topk >= 1, "candidate_topk must be at least 1, got ", candidate_topk);
  TORCH_CHECK_VALUE(num_priors < (int64_t(1) << 31), "centers must be fewer than 2^31, got ", num_priors);
}

inline void check_yolox_detect(const at::Tensor& cls_logits, const at::Tensor& obj_logits,
                               const at::Tensor& boxes, double iou_threshold, int64_t max_detections) {
  TORCH_CHECK_VALUE(cls_logits.dim() == 3 && cls_logits.size(2) > 0,
                    "cls_logits must be [B, P, C] with C > 0, got ", cls_logits.sizes());
  const int64_t batch = cls_logits.size(0), priors = cls_logits.size(1);
  check_shape(obj_logits, "obj_logits", {batch, priors});
  check_shape(boxes, "boxes", {batch, priors, 4});
  check_floating(cls_logits, "cls_logits");
  check_floating(obj_logits, "obj_logits");
  check_floating(boxes, "boxes");
  check_fraction(iou_threshold, "iou_threshold");
  TORCH_CHECK_VALUE(max_detections >= 0, "max_detections must be at least 0, got ", max_detections);
}

inline void check_ema_update(at::TensorList average, at::TensorList value, double momentum) {
  TORCH_CHECK_VALUE(average.size() == value.size(), "value must be a list of ", average.size(),
                    " tensors, got ", value.size());
  check_fraction(momentum, "momentum");
  for (size_t i = 0; i < average.size(); ++i) {
    const at::Tensor &a = average[i], &v = value[i];
    TORCH_CHECK_TYPE(is_floating(a.scalar_type()), "average[", i,
                     "] must be floating point of 16, 32 or 64 bits, got ", a.dtype().name());
    TORCH_CHECK_TYPE(a.scalar_type() == v.scalar_type(), "value[", i, "] must be ", a.dtype().name(),
                     ", got ", v.dtype().name());
    TORCH_CHECK_VALUE(a.sizes() == v.sizes(), "value[", i, "] must be ", a.sizes(), ", got ", v.sizes());
    TORCH_CHECK_VALUE(at::has_internal_overlap(a) != at::MemOverlap::Yes, "average[", i,
                      "] must have memory for each element, got strides ", a.strides(), " for ", a.sizes());
  }
}

// Whether a tensor that is changed shares memory with another one of the lists, as tied weights that are
// listed twice; its own value may lie where it does itself.
inline bool share_memory(at::TensorList average, at::TensorList value) {
  struct Extent {
    uintptr_t begin, end;
    bool changed;
  };
  std::vector<Extent> extents;
  const auto add = [&](const at::Tensor& tensor, bool changed) {
    if (!tensor.numel()) return;
    int64_t last = 0;
    for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
    const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    extents.push_back({begin, begin + (last + 1) * tensor.element_size(), changed});
  };
  for (size_t i = 0; i < average.size(); ++i) {
    add(average[i], true);
    if (average[i].const_data_ptr() != value[i].const_data_ptr()) add(value[i], false);
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  uintptr_t changed_end = 0, read_end = 0;
  for (const Extent& extent : extents) {
    if (extent.begin < changed_end || (extent.changed && extent.begin < read_end)) return true;
    uintptr_t& end = extent.changed ? changed_end : read_end;
    end = std::max(end, extent.end);
  }
  return false;
}

inline void check_image(const at::Tensor& image, const char* name) {
  TORCH_CHECK_TYPE(image.scalar_type() == at::kByte, name, " must be uint8, got ", image.dtype().name());
  TORCH_CHECK_VALUE(image.dim() == 3 && image.size(2) == 3, name, " must be [H, W, 3], got ", image.sizes());
}

inline void check_mixup_blend(const at::Tensor& image, const at::Tensor& partner, at::IntArrayRef canvas,
                              at::IntArrayRef scaled, at::IntArrayRef offset, int64_t pad) {
  check_image(image, "image");
  check_image(partner, "partner");
  const auto is_size = [](at::IntArrayRef size) {
    constexpr int64_t limit = 1 << 24;  // float32 counts pixels
    return size.size() == 2 && size[0] >= 1 && size[1] >= 1 && size[0] <= limit && size[1] <= limit;
  };
  TORCH_CHECK_VALUE(is_size(canvas), "canvas must be (height, width) of 1 or more, got ", canvas);
  TORCH_CHECK_VALUE(is_size(scaled), "scaled must be (height, width) of 1 or more, got ", scaled);
  TORCH_CHECK_VALUE(offset.size() == 2 && offset[0] >= 0 && offset[1] >= 0,
                    "offset must be (y, x) of 0 or more, got ", offset);
  TORCH_CHECK_VALUE(partner.size(0) <= canvas[0] && partner.size(1) <= canvas[1],
                    "partner must fit into the canvas ", canvas, ", got ", partner.sizes());
  TORCH_CHECK_VALUE(pad >= 0 && pad <= 255, "pad must be in [0, 255], got ", pad);
}

using OptionalTensor = c10::optional<at::Tensor>;

// A number for each channel of `input`, of its dtype, or float32 beside a half type.
inline void check_channels(const at::Tensor& tensor, const char* name, const at::Tensor& input) {
  check_shape(tensor, name, {input.size(1)});
  const bool wider = is_half(input.scalar_type()) && tensor.scalar_type() == at::kFloat;
  TORCH_CHECK_TYPE(tensor.scalar_type() == input.scalar_type() || wider, name, " must be ",
                   input.dtype().name(), is_half(input.scalar_type()) ? " or float" : "", ", got ",
                   tensor.dtype().name());
}

// It is changed where that is so.
inline void check_statistic(const at::Tensor& tensor, const char* name, const at::Tensor& input,
                            bool changed) {
  check_channels(tensor, name, input);
  TORCH_CHECK_VALUE(!changed || at::has_internal_overlap(tensor) != at::MemOverlap::Yes, name,
                    " must have memory for each element, got strides ", tensor.strides(), " for ",
                    tensor.sizes());
}

inline void check_batch_norm_input(const at::Tensor& input, const OptionalTensor& weight,
                                   const OptionalTensor& bias) {
  TORCH_CHECK_VALUE(input.dim() == 4, "input must be [N, C, H, W], got ", input.sizes());
  check_floating(input, "input");
  if (weight) check_channels(*weight, "weight", input);
  if (bias) check_channels(*bias, "bias", input);
}

inline void check_batch_norm_silu(const at::Tensor& input, const OptionalTensor& weight,
                                  const OptionalTensor& bias, const OptionalTensor& running_mean,
                                  const OptionalTensor& running_var, bool training, double momentum,
                                  double eps) {
  check_batch_norm_input(input, weight, bias);
  TORCH_CHECK_VALUE(running_mean.has_value() == running_var.has_value(),
                    "running_mean and running_var must both be given or neither");
  TORCH_CHECK_VALUE(training || running_mean,
                    "running_mean and running_var must be given unless training, got None");
  if (running_mean) check_statistic(*running_mean, "running_mean", input, training);
  if (running_var) check_statistic(*running_var, "running_var", input, training);
  TORCH_CHECK_VALUE(!training || input.size(0) * input.size(2) * input.size(3) != 1,
                    "input must have more than 1 value in each channel when training, got ", input.sizes());
  check_fraction(momentum, "momentum");
  check_not_negative(eps, "eps");
}

inline void check_batch_norm_silu_backward(const at::Tensor& grad, const at::Tensor& input,
                                           const OptionalTensor& weight, const OptionalTensor& bias,
                                           const at::Tensor& mean, const at::Tensor& invstd) {
  check_batch_norm_input(input, weight, bias);
  check_shape(grad, "grad", input.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == input.scalar_type(), "grad must be ", input.dtype().name(), ", got ",
                   grad.dtype().name());
  check_channels(mean, "mean", input);
  check_channels(invstd, "invstd", input);
}

// The kernels read float32 or float64, packed; half types are computed in float32.
inline at::Tensor as_float(const at::Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

inline at::ScalarType compute_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace yolox_ops
