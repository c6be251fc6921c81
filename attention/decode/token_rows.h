// Tensors as the append kernel's C border takes them.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/kernels/decode/append_abi.h"

namespace cinch {

/// x (B, heads, T, width), contiguous along the last axis.
inline CinchTokenRows token_rows(const at::Tensor& x) {
  TORCH_INTERNAL_ASSERT(x.dim() == 4 && (x.size(3) < 2 || x.stride(3) == 1));
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

/// q (B, heads, T, width) is where rotated queries go.
inline void rotate_to(const at::Tensor& q, CinchCacheAppend& append) {
  append.q_out = q.mutable_data_ptr();
  append.q_out_batch_stride = q.stride(0);
  append.q_out_head_stride = q.stride(1);
  append.q_out_token_stride = q.stride(2);
}

}  // namespace cinch
