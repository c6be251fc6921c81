// Merges the partial results of latent decode on sm_90 (decode/combine.h tells the formula), without a value map: many
// small thread blocks, which begin as the streaming ones leave.
// `Machine` as in latent_sm90_block.h.
#pragma once

#include <type_traits>

#include "attention/kernels/cuda/sm90_layout.h"
#include "attention/kernels/decode/results.h"
#include "attention/kernels/decode/split_plan.h"

namespace cinch::sm90 {

constexpr int kMergeWarps = 8;
constexpr int kMergeThreads = 32 * kMergeWarps;
constexpr int kMergeColumns = 128;                     // of a warp, 4 per lane
constexpr uint32_t kMergeShared = kMergeThreads * 16;  // bytes, where kSharers > 1

/// Thread blocks of a merge.
CINCH_HOST_DEVICE int64_t merge_blocks(const decode::DecodeJob& job, int sharers) {
  const int64_t rows = static_cast<int64_t>(job.step.batch) * job.step.n_heads;
  const int groups = (job.tiling.value_columns + kMergeColumns - 1) / kMergeColumns;
  return (rows * sharers + kMergeWarps - 1) / kMergeWarps * groups;
}

/// f(std::integral_constant) with the number of warps that share a row. How many parts a sequence has is known on the
/// device alone; on average at most so many.
template <class F>
auto with_sharers(const decode::DecodeJob& job, F&& f) {
  const int parts = job.tiling.parts / job.step.batch + 1;
  if (parts > 32) return f(std::integral_constant<int, 8>());
  return parts > 8 ? f(std::integral_constant<int, 4>()) : f(std::integral_constant<int, 1>());
}

/// Thread block x merges one group of 128 columns of 8 / kSharers rows (sequence, head); kSharers warps share the parts
/// of a row. Sums in a fixed order.
template <class Machine, class T, int kSharers>
class LatentMerge {
 public:
  CINCH_DEVICE LatentMerge(Machine& machine, const decode::DecodeJob& job)
      : m_(machine),
        job_(job),
        step_(job.step),
        columns_(job.tiling.value_columns),
        warp_(machine.thread() / 32),
        lane_(machine.thread() % 32) {}

  CINCH_DEVICE void run() {
    const int groups = (columns_ + kMergeColumns - 1) / kMergeColumns, block = m_.block_x();
    const int64_t row = static_cast<int64_t>(block / groups) * (kMergeWarps / kSharers) + warp_ / kSharers;
    sequence_ = static_cast<int>(row / step_.n_heads);
    head_ = static_cast<int>(row % step_.n_heads);
    column_ = block % groups * kMergeColumns + 4 * lane_;
    const decode::SplitPlan plan =
        decode::SplitPlan::at(const_cast<int32_t*>(step_.plan), job_.tiling.parts, step_.batch);
    share_ = sequence_ < step_.batch ? plan.shares[sequence_] : decode::PlanShare{0, 1};
    m_.await_dependencies();  // the plan is older
    if (share_.count != 1) sum_parts();
    if constexpr (kSharers > 1) gather();
    // Of one part: that has written the result.
    if (warp_ % kSharers == 0 && share_.count != 1) write();
  }

 private:
  CINCH_DEVICE int64_t index(int part) const {
    return static_cast<int64_t>(decode::partial_place(share_, part)) * step_.n_heads + head_;
  }

  /// top_ and total_ over all parts, sums_ over every kSharers-th.
  CINCH_DEVICE void sum_parts() {
    const float* const lses = decode::partial_lse(job_);
    const float* const outs = decode::partial_out(job_) + column_;
    const int count = share_.count;
    for (int i = lane_; i < count; i += 32) top_ = m_.max(top_, lses[index(i)]);
    CINCH_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) top_ = m_.max(top_, m_.from_lane_xor(top_, mask));
    for (int begin = 0; begin < count; begin += 32) {
      const float weight = begin + lane_ < count ? m_.exp2(lses[index(begin + lane_)] - top_) : 0.0f;
      total_ += weight;
      CINCH_UNROLL
      for (int i = 0; i < 32 / kSharers; ++i) {
        const int part = warp_ % kSharers + i * kSharers;
        if (begin + part >= count) break;
        const float factor = m_.from_lane(weight, part);
        if (column_ >= columns_) continue;
        float out[4];
        m_.load_four(outs + index(begin + part) * columns_, out);
        CINCH_UNROLL
        for (int c = 0; c < 4; ++c) sums_[c] += factor * out[c];
      }
    }
    CINCH_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) total_ += m_.from_lane_xor(total_, mask);
  }

  CINCH_DEVICE void gather() {
    const uint32_t place = m_.shared_base() + static_cast<uint32_t>(m_.thread() * 16);
    m_.store_shared(place, m_.chunk_of(sums_));
    m_.sync_block();
    if (warp_ % kSharers != 0) return;
    CINCH_UNROLL
    for (int i = 1; i < kSharers; ++i) {
      float other[4];
      m_.take_chunk(m_.load_shared(place + static_cast<uint32_t>(i * 512)), other);
      CINCH_UNROLL
      for (int c = 0; c < 4; ++c) sums_[c] += other[c];
    }
  }

  CINCH_DEVICE void write() {
    const float inverse = share_.count > 0 ? 1.0f / total_ : 0.0f;
    if (column_ < columns_) {
      uint16_t* const out = decode::whole_out(job_, sequence_, head_) + column_;
      m_.template store_pair<T>(out, sums_[0] * inverse, sums_[1] * inverse);
      m_.template store_pair<T>(out + 2, sums_[2] * inverse, sums_[3] * inverse);
    }
    if (column_ == 0 && step_.lse != nullptr) {
      step_.lse[static_cast<int64_t>(sequence_) * step_.n_heads + head_] =
          share_.count > 0 ? (top_ + m_.log2(total_)) * decode::kLn2 : decode::minus_infinity();
    }
  }

  Machine& m_;
  const decode::DecodeJob& job_;
  const CinchDecodeStep& step_;
  const int columns_, warp_, lane_;
  int sequence_ = 0, head_ = 0, column_ = 0;
  decode::PlanShare share_{0, 1};
  float top_ = decode::minus_infinity(), total_ = 0, sums_[4] = {0, 0, 0, 0};
};

}  // namespace cinch::sm90
