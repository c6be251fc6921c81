// Ridge refit of o_proj on the stream of the converted model.
#pragma once

#include <vector>

#include "convert/transform.h"

namespace cinch {

struct OutputRefit {
  at::Tensor o_proj;  // (E, H*D), dtype of the problem
  at::Tensor o_bias;  // (E) or undefined
  double lambda = 0;  // chosen; 0: the current o_proj was best
  double loss = 0;    // token-weighted squared residual on the windows that judged, over that of the target
};

/// With F the head outputs of `merged` on the converted stream h' and a = attention_residual(o_proj output on the
/// original stream h), fits
///   min_W sum_t w_t |h_t + a_t - h'_t - W F_t|^2 + lambda |(W - W_merged) S|^2,   w_t = 1/|h_t|^2, S^2 the mean power
///   of F per KV head,
/// which also corrects the drift that the converted prefix has left in h'. The bias is fitted with it where the target
/// has one. lambda is the one of `lambdas` with the least loss on the validation windows (on the fitted ones when
/// there are none); with it the fit is made once more on both.
///
/// With a norm after attention (Gemma-2) the fit is made in the o_proj output space: the target is y_t + (h_t - h'_t) /
/// (factor_t gain), y the original o_proj output, that is, the norm is linearised at its original value; weights carry
/// factor_t^2.
OutputRefit refit_output(const LayerProblem& problem, const GroupedQueryWeights& merged,
                         const std::vector<double>& lambdas);

/// |y' - y| / |y| over all tokens of these windows: y and y' the o_proj outputs of the original and the merged
/// attention on the original stream.
double attention_output_error(const LayerProblem& problem, const GroupedQueryWeights& merged,
                              const std::vector<int64_t>& windows);

}  // namespace cinch
