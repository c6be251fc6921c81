#include "convert/solvers/softmax_rows.h"

#include <ATen/ATen.h>

#include <limits>

namespace cinch {

at::Tensor causal_mask(const AttentionSpec& spec, const at::Tensor& positions, int64_t keys,
                       const at::TensorOptions& options) {
  const at::Tensor query = positions.to(options.device()).unsqueeze(1);
  const at::Tensor key = at::arange(keys, at::TensorOptions(at::kLong).device(options.device()));
  at::Tensor hidden = key > query;
  if (spec.window > 0) hidden = hidden.logical_or(key <= query - spec.window);
  return at::zeros(hidden.sizes(), options).masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

SoftmaxRows softmax_rows(const AttentionSpec& spec, const at::Tensor& scores, const at::Tensor& mask) {
  SoftmaxRows rows;
  if (spec.softcap > 0) {
    const at::Tensor bent = at::tanh(scores * (spec.scale / spec.softcap));
    rows.slope = 1 - bent.square();
    rows.p = at::softmax(at::add(mask, bent, spec.softcap), -1);
  } else {
    rows.p = at::softmax(at::add(mask, scores, spec.scale), -1);
  }
  return rows;
}

}  // namespace cinch
