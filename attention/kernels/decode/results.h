// Where results of a decode step go, whole and partial.
#pragma once

#include "attention/kernels/decode/tiling.h"
#include "attention/kernels/warp/numbers.h"

namespace cinch::decode {

template <class V>
CINCH_HOST_DEVICE V* in_scratch(const DecodeJob& job, uint64_t offset) {
  return reinterpret_cast<V*>(static_cast<char*>(job.step.scratch) + offset);
}
/// Of places of the split plan: (2 parts, H), base 2.
CINCH_HOST_DEVICE float* partial_lse(const DecodeJob& job) { return in_scratch<float>(job, job.scratch.partial_lse); }
/// (2 parts, H, value columns), each normalised by itself.
CINCH_HOST_DEVICE float* partial_out(const DecodeJob& job) { return in_scratch<float>(job, job.scratch.partial_out); }
/// A head's sum of values: the result, or what value_map is still to be applied to.
CINCH_HOST_DEVICE uint16_t* whole_out(const DecodeJob& job, int sequence, int head) {
  const CinchDecodeStep& step = job.step;
  if (step.v_head_dim == 0)
    return static_cast<uint16_t*>(step.out) + sequence * step.out_batch_stride + head * step.out_head_stride;
  return in_scratch<uint16_t>(job, job.scratch.latent_out) +
         (static_cast<int64_t>(sequence) * step.n_heads + head) * job.tiling.value_columns;
}

}  // namespace cinch::decode
