// Softmax over raw scores, with what solvers need beside the probabilities: the slope of a soft cap.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_spec.h"

namespace cinch {

/// What is added to the scores of queries at `positions` (M) int64 and keys 0..keys-1: 0 where the query sees the key
/// (causal, sliding window), -inf elsewhere. (M, keys).
at::Tensor causal_mask(const AttentionSpec& spec, const at::Tensor& positions, int64_t keys,
                       const at::TensorOptions& options);

struct SoftmaxRows {
  at::Tensor p;      // (..., M, S)
  at::Tensor slope;  // (..., M, S) of the soft cap at each score; undefined without a cap
};
/// `scores` (..., M, S): q . k before scale and cap.
SoftmaxRows softmax_rows(const AttentionSpec& spec, const at::Tensor& scores, const at::Tensor& mask);

}  // namespace cinch
