// Small steps that the attention modules share.
#pragma once

#include <ATen/core/Tensor.h>

namespace cinch {

/// x (.., in) through weight (out, in) and bias (out), which may be undefined.
at::Tensor biased_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
/// (B, T, heads*D) -> (B, heads, T, D), a view.
at::Tensor split_heads(const at::Tensor& x, int64_t heads);
/// (B, heads, T, D) -> (B, T, heads*D).
at::Tensor join_heads(const at::Tensor& x);
/// In another dtype and on another device; undefined stays undefined.
at::Tensor moved(const at::Tensor& tensor, at::ScalarType dtype, at::Device device);

}  // namespace cinch
