#pragma once
#include <ATen/ATen.h>

#include <tuple>

namespace yolox_ops::CPU_CAPABILITY {

std::tuple<at::Tensor, at::Tensor, at::Tensor> yolox_select(const at::Tensor& scores,
                                                            const at::Tensor& labels, const at::Tensor& boxes,
                                                            double score_threshold, double iou_threshold,
                                                            int64_t max_detections);

}  // namespace yolox_ops::CPU_CAPABILITY
