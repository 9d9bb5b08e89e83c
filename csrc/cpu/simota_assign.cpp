// SimOTA for a batch, without the cost matrix. A gt's cost is looked at only where it can matter: at the
// priors in its box and centre region; elsewhere (+1e5) only when those are fewer than the k it may take; and
// where two gts want one prior. Priors come in blocks of neighbours whose bounds are known, so that a gt
// passes over whole blocks that it does not touch.
#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "capability.h"
#include "checks.h"
#include "simota.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

using Candidate = std::pair<float, int32_t>;  // cost, prior: ordered by cost, then by index

constexpr int64_t kBlock = 32;  // priors in a block
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

// Visits the places of `flags` in [begin, end) that are not 0; eight at a time, as nearly all are 0.
template <typename F>
void each_set(const uint8_t* flags, int64_t begin, int64_t end, F&& visit) {
  for (int64_t i = begin; i < end;) {
    uint64_t word = 1;
    if (i + 8 <= end) std::memcpy(&word, flags + i, 8);
    const int64_t stop = std::min(i + 8, end);
    if (!word) {
      i = stop;
      continue;
    }
    for (; i < stop; ++i) {
      if (flags[i]) visit(i);
    }
  }
}

// Columns of the priors: the predicted box and its area, the centre, and how far its region reaches.
enum PriorColumn : size_t { kX1, kY1, kX2, kY2, kArea, kX, kY, kReachX, kReachY, kPriorColumns };

// Columns of the blocks: the least and the greatest values of their priors.
enum BoundColumn : size_t {
  kMinX1,
  kMinY1,
  kMaxX2,
  kMaxY2,
  kMinX,
  kMinY,
  kMaxX,
  kMaxY,
  kMaxReachX,
  kMaxReachY,
  kBoundColumns
};

// Columns of a table of floats.
template <size_t N>
struct Columns {
  explicit Columns(int64_t rows) : data(N * rows) {
    for (size_t k = 0; k < N; ++k) column[k] = data.data() + k * rows;
  }
  std::vector<float> data;
  std::array<float*, N> column;
};

// What a thread needs to match a gt; the IoU row is all 0 between two gts.
struct Scratch {
  explicit Scratch(int64_t rows) : iou(rows), both(rows), touched(rows / kBlock) {}
  std::vector<float> iou;
  std::vector<uint8_t> both, touched;
  std::vector<int32_t> places;
  std::vector<Candidate> queue;
  std::vector<float> miss, score, overlap;
  Best<float, std::greater<float>> overlaps;
  Best<Candidate, std::less<Candidate>> best;
};

// One image.
class Image {
 public:
  Image(const float* scores, const float* centers, const float* boxes, const float* gt_boxes,
        const int64_t* labels, int64_t num_priors, int64_t classes, int64_t num_gts, float radius,
        Weights weights)
      : scores_(scores),
        labels_(labels),
        n_(num_priors),
        blocks_((num_priors + kBlock - 1) / kBlock),
        classes_(classes),
        weights_(weights),
        priors_(rows()),
        bounds_(blocks_),
        valid_(rows()) {
    for (int64_t j = 0; j < num_gts; ++j) gts_.emplace_back(gt_boxes + 4 * j);
    at::parallel_for(0, blocks_, 32, [&](int64_t begin, int64_t end) {
      fill(centers, boxes, radius, begin, end);
      std::vector<uint8_t> near(blocks_);
      for (const Gt& gt : gts_) {
        const Gt g = gt;
        for (int64_t b = begin; b < end; ++b) near[b] = may_be_in_box(b, g) | may_be_in_center(b, g);
        each_set(near.data(), begin, end, [&](int64_t b) {
          uint8_t* valid = valid_.data() + b * kBlock;
          for (int64_t l = 0; l < kBlock; ++l) {
            const Prior p = prior(b * kBlock + l);
            valid[l] |= in_box(p, g) | in_center(p, g);
          }
        });
      }
    });
  }

  int64_t rows() const { return blocks_ * kBlock; }
  int64_t num_gts() const { return static_cast<int64_t>(gts_.size()); }

  // The priors that gt `j` takes.
  void match(int64_t j, int64_t candidate_topk, Scratch& scratch, std::vector<int32_t>& chosen) const {
    const Gt g = gts_[j];
    uint8_t* touched = scratch.touched.data();
    for (int64_t b = 0; b < blocks_; ++b) {
      touched[b] = may_overlap(b, g) | (may_be_in_box(b, g) & may_be_in_center(b, g)) << 1;
    }
    scratch.overlaps.reset(std::min(candidate_topk, n_));
    scratch.places.clear();
    each_set(touched, 0, blocks_, [&](int64_t b) {
      if (touched[b] & 1) overlap_block(b, g, scratch);
      if (touched[b] & 2) find_in_box_and_center(b, g, scratch);
    });
    float sum = 0;
    for (const float value : scratch.overlaps.items()) sum += value;
    scratch.best.reset(std::max<int64_t>(1, std::min(static_cast<int64_t>(sum), n_)));
    price_inside(j, scratch);
    const auto& best = scratch.best;
    if (!best.full() || best.items().back().first >= kOutside) price_outside(j, scratch);
    chosen.clear();
    for (const Candidate& item : best.items()) chosen.push_back(item.second);
    each_set(touched, 0, blocks_,
             [&](int64_t b) { std::fill_n(scratch.iou.data() + b * kBlock, kBlock, 0.0F); });
  }

  float iou(int64_t i, int64_t j) const {
    const auto& c = priors_.column;
    return iou_of(c[kX1][i], c[kY1][i], c[kX2][i], c[kY2][i], c[kArea][i], gts_[j]);
  }

  // The gt of least cost for prior `i` over all gts.
  int64_t cheapest(int64_t i) const {
    const Prior p = prior(i);
    const float sum = miss_sum(scores_ + i * classes_, classes_);
    int64_t best = 0;
    float least = kInfinity;
    const auto look = [&](int64_t j, float outside) {
      const float c = cost_of(sum, scores_[i * classes_ + labels_[j]], iou(i, j), outside, weights_);
      if (c < least || (c == least && j < best)) best = j, least = c;
    };
    for (int64_t j = 0; j < num_gts(); ++j) {
      if (in_box(p, gts_[j]) & in_center(p, gts_[j])) look(j, 0.0F);
    }
    // No cost outside is below this: the class cost is at least 0, and log(IoU) at most 88.8.
    if (least < kOutside - 89 * weights_.iou) return best;
    for (int64_t j = 0; j < num_gts(); ++j) {
      if (!(in_box(p, gts_[j]) & in_center(p, gts_[j]))) look(j, kOutside);
    }
    return best;
  }

  // The prior of least cost for gt `j` among those in its own box or centre region that have no owner, -1 if
  // there is none. Few gts ask, so this looks at every prior.
  int64_t cheapest_free(int64_t j, const int64_t* owner) const {
    int64_t best = -1;
    float least = kInfinity;
    for (int64_t i = 0; i < n_; ++i) {
      const Prior p = prior(i);
      const bool box = in_box(p, gts_[j]), center = in_center(p, gts_[j]);
      if (owner[i] >= 0 || !(box | center)) continue;
      const float* row = scores_ + i * classes_;
      const float cost = cost_of(miss_sum(row, classes_), row[labels_[j]], iou(i, j),
                                 box & center ? 0.0F : kOutside, weights_);
      if (best < 0 || cost < least) best = i, least = cost;
    }
    return best;
  }

 private:
  // Copies blocks into columns, pads the last with NaN, which is nowhere and overlaps nothing, and takes
  // bounds.
  void fill(const float* centers, const float* boxes, float radius, int64_t begin, int64_t end) {
    const auto& c = priors_.column;
    const auto& bounds = bounds_.column;
    for (int64_t i = begin * kBlock; i < end * kBlock; ++i) {
      if (i >= n_) {
        for (float* column : c) column[i] = std::numeric_limits<float>::quiet_NaN();
        continue;
      }
      const float *p = centers + 4 * i, *d = boxes + 4 * i;
      c[kX1][i] = d[0], c[kY1][i] = d[1], c[kX2][i] = d[2], c[kY2][i] = d[3];
      c[kArea][i] = (d[2] - d[0]) * (d[3] - d[1]);
      c[kX][i] = p[0], c[kY][i] = p[1], c[kReachX][i] = radius * p[2], c[kReachY][i] = radius * p[3];
    }
    for (int64_t b = begin; b < end; ++b) {
      const auto least = [&](PriorColumn k) {
        return bound(c[k] + b * kBlock, std::less<float>(), kInfinity);
      };
      const auto most = [&](PriorColumn k) {
        return bound(c[k] + b * kBlock, std::greater<float>(), -kInfinity);
      };
      bounds[kMinX1][b] = least(kX1), bounds[kMinY1][b] = least(kY1);
      bounds[kMaxX2][b] = most(kX2), bounds[kMaxY2][b] = most(kY2);
      bounds[kMinX][b] = least(kX), bounds[kMinY][b] = least(kY);
      bounds[kMaxX][b] = most(kX), bounds[kMaxY][b] = most(kY);
      bounds[kMaxReachX][b] = most(kReachX), bounds[kMaxReachY][b] = most(kReachY);
    }
  }

  // NaN never passes the comparison and so counts for nothing.
  template <typename Before>
  static float bound(const float* values, Before before, float best) {
    for (int64_t l = 0; l < kBlock; ++l) best = before(values[l], best) ? values[l] : best;
    return best;
  }

  // Whether some prior of a block may be in the box or the centre region of a gt, or its prediction overlap
  // it. The same comparisons as for a prior, with the block's bounds: rounding is monotonic, so nothing is
  // missed.
  bool may_overlap(int64_t b, const Gt& g) const {
    const auto& c = bounds_.column;
    return (c[kMinX1][b] < g.x2) & (c[kMinY1][b] < g.y2) & (c[kMaxX2][b] > g.x1) & (c[kMaxY2][b] > g.y1);
  }
  bool may_be_in_box(int64_t b, const Gt& g) const {
    const auto& c = bounds_.column;
    return (c[kMinX][b] < g.x2) & (c[kMinY][b] < g.y2) & (c[kMaxX][b] > g.x1) & (c[kMaxY][b] > g.y1);
  }
  bool may_be_in_center(int64_t b, const Gt& g) const {
    const auto& c = bounds_.column;
    const float reach_x = c[kMaxReachX][b], reach_y = c[kMaxReachY][b];
    return (c[kMinX][b] < g.cx + reach_x) & (c[kMinY][b] < g.cy + reach_y) & (c[kMaxX][b] > g.cx - reach_x) &
           (c[kMaxY][b] > g.cy - reach_y);
  }

  Prior prior(int64_t i) const {
    const auto& c = priors_.column;
    return {c[kX][i], c[kY][i], c[kReachX][i], c[kReachY][i]};
  }

  // The IoUs of a block's candidates, and the largest of all so far.
  void overlap_block(int64_t b, const Gt& g, Scratch& scratch) const {
    const auto& c = priors_.column;
    const int64_t begin = b * kBlock;
    float* iou = scratch.iou.data() + begin;
    const uint8_t* valid = valid_.data() + begin;
    auto& best = scratch.overlaps;
    const float bar = best.full() && !best.items().empty() ? best.items().back() : 0.0F;
    int above = 0;
    for (int64_t l = 0; l < kBlock; ++l) {
      const int64_t i = begin + l;
      const float overlap = iou_of(c[kX1][i], c[kY1][i], c[kX2][i], c[kY2][i], c[kArea][i], g);
      iou[l] = valid[l] ? overlap : 0.0F;
      above |= iou[l] > bar;
    }
    if (!above) return;
    for (int64_t l = 0; l < kBlock; ++l) {
      if (iou[l] > bar) best.push(iou[l]);
    }
  }

  void find_in_box_and_center(int64_t b, const Gt& g, Scratch& scratch) const {
    uint8_t* both = scratch.both.data() + b * kBlock;
    for (int64_t l = 0; l < kBlock; ++l) {
      const Prior p = prior(b * kBlock + l);
      both[l] = in_box(p, g) & in_center(p, g);
    }
    each_set(both, 0, kBlock,
             [&](int64_t l) { scratch.places.push_back(static_cast<int32_t>(b * kBlock + l)); });
  }

  // Prices the priors in box and centre region: gathered first, to price sixteen at a time.
  void price_inside(int64_t j, Scratch& scratch) const {
    const size_t count = scratch.places.size(), padded = (count + kLanes - 1) / kLanes * kLanes;
    scratch.miss.resize(padded), scratch.score.resize(padded), scratch.overlap.resize(padded);
    for (size_t k = 0; k < count; ++k) {
      const int64_t i = scratch.places[k];
      const float* row = scores_ + i * classes_;
      scratch.miss[k] = miss_sum(row, classes_);
      scratch.score[k] = row[labels_[j]];
      scratch.overlap[k] = scratch.iou[i];
    }
    for (size_t k = 0; k < padded; k += kLanes) {
      const Lanes cost = cost_of(load(&scratch.miss[k]), load(&scratch.score[k]), load(&scratch.overlap[k]),
                                 Lanes{}, weights_);
      for (size_t l = 0; l < kLanes && k + l < count; ++l)
        scratch.best.push({cost[l], scratch.places[k + l]});
    }
  }

  // The other candidates, those of least IoU cost first: the class cost is at least 0, so that once an IoU
  // alone is too dear, so is all that follows. Most candidates overlap nothing and share one IoU cost.
  void price_outside(int64_t j, Scratch& scratch) const {
    const Gt g = gts_[j];
    auto& best = scratch.best;
    const auto price = [&](int64_t i) {
      const float* row = scores_ + i * classes_;
      const float cost =
          cost_of(miss_sum(row, classes_), row[labels_[j]], scratch.iou[i], kOutside, weights_);
      best.push({cost, static_cast<int32_t>(i)});
    };
    const auto is_inside = [&](int64_t i) {
      const Prior p = prior(i);
      return in_box(p, g) & in_center(p, g);
    };
    auto& queue = scratch.queue;
    queue.clear();
    each_set(scratch.touched.data(), 0, blocks_, [&](int64_t b) {
      for (int64_t i = b * kBlock; i < (b + 1) * kBlock; ++i) {
        if (scratch.iou[i] > 0 && !is_inside(i))
          queue.push_back({outside_floor(scratch.iou[i]), static_cast<int32_t>(i)});
      }
    });
    std::make_heap(queue.begin(), queue.end(), std::greater<Candidate>());
    while (!queue.empty() && best.admits(queue.front())) {
      price(queue.front().second);
      std::pop_heap(queue.begin(), queue.end(), std::greater<Candidate>());
      queue.pop_back();
    }
    const float nothing = outside_floor(0.0F);
    if (!best.admits({nothing, 0})) return;
    each_set(valid_.data(), 0, n_, [&](int64_t i) {
      if (scratch.iou[i] > 0 || is_inside(i) || !best.admits({nothing, static_cast<int32_t>(i)})) return;
      price(i);
    });
  }

  float outside_floor(float iou) const { return -log_normal(iou + 1e-7F) * weights_.iou + kOutside; }

  const float* scores_;
  const int64_t* labels_;
  int64_t n_, blocks_, classes_;
  Weights weights_;
  std::vector<Gt> gts_;
  Columns<kPriorColumns> priors_;
  Columns<kBoundColumns> bounds_;
  std::vector<uint8_t> valid_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> simota_assign(const at::Tensor& scores, const at::Tensor& centers,
                                                 const at::Tensor& boxes, const at::Tensor& gt_boxes,
                                                 const at::Tensor& gt_labels, const at::Tensor& num_gts,
                                                 double center_radius, int64_t candidate_topk,
                                                 double cls_weight, double iou_weight, bool keep_every_gt) {
  check_simota_assign(scores, centers, boxes, gt_boxes, gt_labels, num_gts, candidate_topk, cls_weight,
                      iou_weight);
  const int64_t batch = scores.size(0), num_priors = scores.size(1), classes = scores.size(2);
  const int64_t padded = gt_boxes.size(1);
  const at::Tensor s = as_float(scores), p = as_float(centers), d = as_float(boxes), g = as_float(gt_boxes);
  const at::Tensor labels = gt_labels.contiguous(), counts = num_gts.contiguous();
  const int64_t *label = labels.const_data_ptr<int64_t>(), *count = counts.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(count[b] >= 0 && count[b] <= padded, "num_gts must be in [0, ", padded, "], got ",
                      count[b]);
    check_labels(label + b * padded, count[b], classes, "gt_labels");
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
      Scratch scratch(image.rows());
      for (int64_t j = begin; j < end; ++j) image.match(j, candidate_topk, scratch, chosen[j]);
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
    if (keep_every_gt) {
      std::vector<int64_t> positives(count[b]);
      for (const int32_t i : taken) ++positives[owner[i]];
      for (int64_t j = 0; j < count[b]; ++j) {
        const int64_t i = positives[j] ? -1 : image.cheapest_free(j, owner);
        if (i < 0) continue;
        owner[i] = j;
        taken.push_back(static_cast<int32_t>(i));
      }
    }
    for (const int32_t i : taken) overlap[i] = image.iou(i, owner[i]);
  }
  return {gt_index, matched_iou};
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(simota_assign)
}  // namespace yolox_ops
