// SimOTA for a batch, without the cost matrix. A gt's cost is looked at only where it can matter: at the
// priors in its box and centre region; elsewhere (+1e5) only when those are fewer than the k it may take; and
// where two gts want one prior. IoU is computed for all priors, one gt at a time, into a row that each thread
// reuses.
#include <algorithm>
#include <atomic>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "capability.h"
#include "checks.h"
#include "simota.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

using Candidate = std::pair<float, int32_t>;  // cost, prior: ordered by cost, then by index

// The best `capacity` values pushed, best first.
template <typename T, typename Before>
class Best {
 public:
  void reset(int64_t capacity) {
    capacity_ = capacity;
    items_.clear();
  }
  bool full() const { return static_cast<int64_t>(items_.size()) >= capacity_; }
  bool admits(const T& item) const { return capacity_ > 0 && (!full() || Before()(item, items_.back())); }
  void push(const T& item) {
    if (!admits(item)) return;
    if (full()) items_.pop_back();
    items_.insert(std::upper_bound(items_.begin(), items_.end(), item, Before()), item);
  }
  const std::vector<T>& items() const { return items_; }

 private:
  int64_t capacity_ = 0;
  std::vector<T> items_;
};

// One image.
class Image {
 public:
  Image(const float* scores, const float* priors, const float* boxes, const float* gt_boxes,
        const int64_t* labels, int64_t num_priors, int64_t classes, int64_t num_gts, float radius,
        Weights weights)
      : scores_(scores),
        labels_(labels),
        n_(num_priors),
        classes_(classes),
        weights_(weights),
        columns_(9 * num_priors),
        valid_(num_priors),
        miss_(new std::atomic<float>[num_priors]) {
    for (int64_t j = 0; j < num_gts; ++j) gts_.emplace_back(gt_boxes + 4 * j);
    float* c = columns_.data();
    for (int64_t k = 0; k < 9; ++k) column_[k] = c + k * n_;
    at::parallel_for(0, n_, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float *p = priors + 4 * i, *d = boxes + 4 * i;
        for (int64_t k = 0; k < 4; ++k) column_[k][i] = d[k];
        column_[4][i] = (d[2] - d[0]) * (d[3] - d[1]);
        column_[5][i] = p[0], column_[6][i] = p[1], column_[7][i] = radius * p[2],
        column_[8][i] = radius * p[3];
        miss_[i].store(-1.0F, std::memory_order_relaxed);
        valid_[i] = 0;
      }
      const float *x = column_[5], *y = column_[6], *rx = column_[7], *ry = column_[8];
      uint8_t* valid = valid_.data();
      for (const Gt& gt : gts_) {
        const Gt g = gt;
        for (int64_t i = begin; i < end; ++i) {
          const Prior p{x[i], y[i], rx[i], ry[i]};
          valid[i] |= in_box(p, g) | in_center(p, g);
        }
      }
    });
  }

  int64_t num_gts() const { return static_cast<int64_t>(gts_.size()); }

  // The priors that gt `j` takes. `iou` and `both` are scratch rows.
  void match(int64_t j, int64_t candidate_topk, float* iou, uint8_t* both, std::vector<int32_t>& chosen) {
    const Gt g = gts_[j];
    const float *x1 = column_[0], *y1 = column_[1], *x2 = column_[2], *y2 = column_[3], *area = column_[4];
    const float *x = column_[5], *y = column_[6], *rx = column_[7], *ry = column_[8];
    const uint8_t* valid = valid_.data();
    for (int64_t i = 0; i < n_; ++i) {
      const float overlap = iou_of(x1[i], y1[i], x2[i], y2[i], area[i], g);
      iou[i] = valid[i] ? overlap : 0.0F;
    }
    for (int64_t i = 0; i < n_; ++i) {
      const Prior p{x[i], y[i], rx[i], ry[i]};
      both[i] = in_box(p, g) & in_center(p, g);
    }
    const int64_t k = dynamic_k(iou, candidate_topk);
    Best<Candidate, std::less<Candidate>> best;
    best.reset(k);
    each_set(both, [&](int64_t i) { best.push({cost(i, j, iou[i], true), static_cast<int32_t>(i)}); });
    if (!best.full() || best.items().back().first >= kOutside) {
      // Class cost is at least 0: a prior whose IoU alone is too dear need not be priced. Most priors overlap
      // nothing and share one IoU cost.
      const float nothing = outside_floor(0.0F);
      each_set(valid, [&](int64_t i) {
        if (both[i]) return;
        const float floor = iou[i] > 0 ? outside_floor(iou[i]) : nothing;
        const auto index = static_cast<int32_t>(i);
        if (best.admits({floor, index})) best.push({cost(i, j, iou[i], false), index});
      });
    }
    chosen.clear();
    for (const Candidate& item : best.items()) chosen.push_back(item.second);
  }

  float iou(int64_t i, int64_t j) const {
    return iou_of(column_[0][i], column_[1][i], column_[2][i], column_[3][i], column_[4][i], gts_[j]);
  }

  // The gt of least cost for prior `i` over all gts.
  int64_t cheapest(int64_t i) {
    const Prior p{column_[5][i], column_[6][i], column_[7][i], column_[8][i]};
    int64_t best = 0;
    float least = std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < num_gts(); ++j) {
      const float c = cost(i, j, iou(i, j), in_box(p, gts_[j]) & in_center(p, gts_[j]));
      if (c < least) best = j, least = c;
    }
    return best;
  }

 private:
  // Eight bytes at a time: nearly all are 0.
  template <typename F>
  void each_set(const uint8_t* flags, F&& visit) const {
    for (int64_t i = 0; i < n_;) {
      uint64_t word = 1;
      if (i + 8 <= n_) std::memcpy(&word, flags + i, 8);
      const int64_t end = std::min(i + 8, n_);
      if (!word) {
        i = end;
        continue;
      }
      for (; i < end; ++i) {
        if (flags[i]) visit(i);
      }
    }
  }

  int64_t dynamic_k(const float* iou, int64_t candidate_topk) {
    constexpr int64_t lanes = 32;
    Best<float, std::greater<float>> best;
    best.reset(std::min(candidate_topk, n_));
    for (int64_t i = 0; i < n_; i += lanes) {
      const int64_t end = std::min(i + lanes, n_);
      const float bar = best.full() && !best.items().empty() ? best.items().back() : 0.0F;
      int above = 0;
      for (int64_t l = i; l < end; ++l) above |= iou[l] > bar;
      if (!above) continue;
      for (int64_t l = i; l < end; ++l) {
        if (iou[l] > 0) best.push(iou[l]);
      }
    }
    float sum = 0;
    for (const float value : best.items()) sum += value;
    return std::max<int64_t>(1, std::min(static_cast<int64_t>(sum), n_));
  }

  float outside_floor(float iou) const { return -log_normal(iou + 1e-7F) * weights_.iou + kOutside; }

  // S is computed when first wanted. Two threads may both compute it, to the same value.
  float cost(int64_t i, int64_t j, float iou, bool both) {
    const float* row = scores_ + i * classes_;
    float sum = miss_[i].load(std::memory_order_relaxed);
    if (sum == -1.0F) {
      sum = miss_sum(row, classes_);
      miss_[i].store(sum, std::memory_order_relaxed);
    }
    return cost_of(sum, row[labels_[j]], iou, both, weights_);
  }

  const float* scores_;
  const int64_t* labels_;
  int64_t n_, classes_;
  Weights weights_;
  std::vector<Gt> gts_;
  std::vector<float> columns_;
  float* column_[9];
  std::vector<uint8_t> valid_;
  std::unique_ptr<std::atomic<float>[]> miss_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> simota_assign(const at::Tensor& scores, const at::Tensor& priors,
                                                 const at::Tensor& boxes, const at::Tensor& gt_boxes,
                                                 const at::Tensor& gt_labels, const at::Tensor& num_gts,
                                                 double center_radius, int64_t candidate_topk,
                                                 double cls_weight, double iou_weight) {
  TORCH_CHECK_VALUE(scores.dim() == 3, "scores must be [B, P, C], got ", scores.sizes());
  TORCH_CHECK_VALUE(gt_boxes.dim() == 3 && gt_boxes.size(0) == scores.size(0) && gt_boxes.size(2) == 4,
                    "gt_boxes must be [", scores.size(0), ", G, 4], got ", gt_boxes.sizes());
  const int64_t batch = scores.size(0), num_priors = scores.size(1), classes = scores.size(2);
  const int64_t padded = gt_boxes.size(1);
  check_shape(priors, "priors", {num_priors, 4});
  check_shape(boxes, "boxes", {batch, num_priors, 4});
  check_shape(gt_labels, "gt_labels", {batch, padded});
  check_shape(num_gts, "num_gts", {batch});
  check_floating(scores, "scores");
  check_floating(priors, "priors");
  check_floating(boxes, "boxes");
  check_floating(gt_boxes, "gt_boxes");
  check_int64(gt_labels, "gt_labels");
  check_int64(num_gts, "num_gts");
  check_not_negative(cls_weight, "cls_weight");
  check_not_negative(iou_weight, "iou_weight");
  TORCH_CHECK_VALUE(candidate_topk >= 1, "candidate_topk must be at least 1, got ", candidate_topk);
  TORCH_CHECK_VALUE(num_priors < (int64_t(1) << 31), "priors must be fewer than 2^31, got ", num_priors);
  const at::Tensor s = as_float(scores), p = as_float(priors), d = as_float(boxes), g = as_float(gt_boxes);
  const at::Tensor labels = gt_labels.contiguous(), counts = num_gts.contiguous();
  const int64_t *label = labels.const_data_ptr<int64_t>(), *count = counts.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(count[b] >= 0 && count[b] <= padded, "num_gts must be in [0, ", padded, "], got ",
                      count[b]);
    for (int64_t j = 0; j < count[b]; ++j) {
      const int64_t value = label[b * padded + j];
      TORCH_CHECK_VALUE(value >= 0 && value < classes, "gt_labels must be in [0, ", classes, "), got ",
                        value);
    }
  }
  at::Tensor gt_index = at::full({batch, num_priors}, -1, labels.options());
  at::Tensor matched_iou = at::zeros({batch, num_priors}, s.options());
  for (int64_t b = 0; b < batch; ++b) {
    if (!count[b] || !num_priors) continue;
    Image image(s.const_data_ptr<float>() + b * num_priors * classes, p.const_data_ptr<float>(),
                d.const_data_ptr<float>() + b * num_priors * 4, g.const_data_ptr<float>() + b * padded * 4,
                label + b * padded, num_priors, classes, count[b], static_cast<float>(center_radius),
                {static_cast<float>(cls_weight), static_cast<float>(iou_weight)});
    std::vector<std::vector<int32_t>> chosen(count[b]);
    at::parallel_for(0, count[b], 1, [&](int64_t begin, int64_t end) {
      std::vector<float> iou(num_priors);
      std::vector<uint8_t> both(num_priors);
      for (int64_t j = begin; j < end; ++j)
        image.match(j, candidate_topk, iou.data(), both.data(), chosen[j]);
    });
    int64_t* owner = gt_index.mutable_data_ptr<int64_t>() + b * num_priors;
    float* overlap = matched_iou.mutable_data_ptr<float>() + b * num_priors;
    std::vector<int32_t> taken, contested;
    for (int64_t j = 0; j < count[b]; ++j) {
      for (const int32_t i : chosen[j]) {
        (owner[i] < 0 ? taken : contested).push_back(i);
        owner[i] = j;
      }
    }
    for (const int32_t i : contested) owner[i] = image.cheapest(i);
    for (const int32_t i : taken) overlap[i] = image.iou(i, owner[i]);
  }
  return {gt_index, matched_iou};
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(simota_assign)
}  // namespace yolox_ops
