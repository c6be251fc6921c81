// Merges the partial results of latent decode on sm_90, without a value map (decode/combine.h tells the formula).
#pragma once

#include "attention/kernels/cuda/sm90_machine.h"
#include "attention/kernels/decode/results.h"
#include "attention/kernels/decode/split_plan.h"

namespace cinch::sm90 {

constexpr int kMergeWarps = 8;
constexpr int kMergeThreads = 32 * kMergeWarps;
constexpr int kMergeColumns = 128;  // of a warp, 4 per lane

/// Sum over the parts kOwn, kOwn + kSharers, .. of a row, by one warp. `row` gives the place of a part's row.
template <int kSharers, class Row>
__device__ __forceinline__ float4 weighted_sum(const float* lses, const float* outs, int64_t stride, int count, int own,
                                               float top, float& total, Row row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int begin = 0; begin < count; begin += 32) {
    const float weight = begin + lane < count ? Gpu::exp2(lses[row(begin + lane)] - top) : 0.0f;
    total += weight;
#pragma unroll
    for (int i = 0; i < 32 / kSharers; ++i) {
      const int part = own + i * kSharers;
      if (begin + part >= count) break;
      const float factor = __shfl_sync(0xffffffffu, weight, part);
      if (outs == nullptr) continue;
      const float4 v = *reinterpret_cast<const float4*>(outs + row(begin + part) * stride);
      sum.x += factor * v.x, sum.y += factor * v.y, sum.z += factor * v.z, sum.w += factor * v.w;
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
  return sum;
}

/// See merge_kernel.
template <class T, int kSharers>
__device__ __forceinline__ void merge_rows(const decode::DecodeJob& job) {
  using namespace decode;
  const CinchDecodeStep& step = job.step;
  const int columns = job.tiling.value_columns, groups = divided_up(columns, kMergeColumns);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int own = warp % kSharers;
  const int64_t index = static_cast<int64_t>(blockIdx.x) / groups * (kMergeWarps / kSharers) + warp / kSharers;
  const int sequence = static_cast<int>(index / step.n_heads), head = static_cast<int>(index % step.n_heads);
  const int column = static_cast<int>(blockIdx.x) % groups * kMergeColumns + 4 * lane;
  const bool exists = sequence < step.batch;
  const SplitPlan plan = SplitPlan::at(const_cast<int32_t*>(step.plan), job.tiling.parts, step.batch);
  const PlanShare share = exists ? plan.shares[sequence] : PlanShare{0, 1};
  Gpu::await_dependencies();
  Gpu::launch_dependents();
  const auto row = [&](int i) { return static_cast<int64_t>(partial_place(share, i)) * step.n_heads + head; };
  const float* const lses = partial_lse(job);
  float top = minus_infinity(), total = 0;
  float4 sum = make_float4(0, 0, 0, 0);
  if (share.count != 1) {
    for (int i = lane; i < share.count; i += 32) top = fmaxf(top, lses[row(i)]);
    for (int mask = 16; mask > 0; mask /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
    sum = weighted_sum<kSharers>(lses, column < columns ? partial_out(job) + column : nullptr, columns, share.count,
                                 own, top, total, row);
  }
  if constexpr (kSharers > 1) {
    __shared__ float4 sums[kMergeWarps][32];
    sums[warp][lane] = sum;
    __syncthreads();
    if (own == 0) {
      for (int i = 1; i < kSharers; ++i) {
        const float4 v = sums[warp + i][lane];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
    }
  }
  if (own != 0 || share.count == 1) return;  // of one part: it has written the result
  const float inverse = total > 0 ? 1.0f / total : 0.0f;
  if (column < columns) {
    uint16_t* const out = whole_out(job, sequence, head) + column;
    Gpu::store_pair<T>(out, sum.x * inverse, sum.y * inverse);
    Gpu::store_pair<T>(out + 2, sum.z * inverse, sum.w * inverse);
  }
  if (column == 0 && step.lse != nullptr) {
    step.lse[static_cast<int64_t>(sequence) * step.n_heads + head] =
        share.count > 0 ? (top + log2f(total)) * kLn2 : minus_infinity();
  }
}

}  // namespace cinch::sm90
