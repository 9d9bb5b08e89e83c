// The SimOTA cost and IoU matrices of one image.
#include <limits>
#include <tuple>

#include "simota.h"

namespace yolox_ops::npu {

std::tuple<at::Tensor, at::Tensor> simota_cost(const at::Tensor& scores, const at::Tensor& centers,
                                               const at::Tensor& boxes, const at::Tensor& gt_boxes,
                                               const at::Tensor& gt_labels, double center_radius,
                                               double cls_weight, double iou_weight) {
  check_simota_cost(scores, centers, boxes, gt_boxes, gt_labels, cls_weight, iou_weight);
  const Costs costs =
      simota_costs(as_float(scores).unsqueeze(0), as_float(centers), as_float(boxes).unsqueeze(0),
                   as_float(gt_boxes).unsqueeze(0), gt_labels.unsqueeze(0), center_radius, cls_weight,
                   iou_weight, std::numeric_limits<double>::infinity());
  return {costs.cost.squeeze(0).t().contiguous(), costs.iou.squeeze(0).t().contiguous()};
}

}  // namespace yolox_ops::npu

namespace yolox_ops {
YOLOX_OPS_REGISTER_NPU(simota_cost)
}  // namespace yolox_ops
