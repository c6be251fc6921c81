#include "convert/solvers/merged_heads.h"

#include <ATen/ATen.h>

namespace cinch {
namespace {

/// Splits the bias column off rows (n*D, C) and stores both where the source has them.
void store(const at::Tensor& rows, const at::Tensor& source_weight, const at::Tensor& source_bias, at::Tensor& weight,
           at::Tensor& bias) {
  const int64_t inputs = source_weight.size(1);
  weight = rows.slice(1, 0, inputs).to(source_weight.options()).contiguous();
  if (source_bias.defined()) bias = rows.select(1, inputs).to(source_bias.options()).contiguous();
}

at::Tensor shared(const at::Tensor& map, const at::Tensor& heads) {
  const int64_t groups = map.size(0), d = map.size(1);
  return at::bmm(map.reshape({groups, d, -1}), heads.reshape({groups, -1, heads.size(2)}));
}

}  // namespace

at::Tensor joined_output(const at::Tensor& o, const at::TensorOptions& options) {
  return o.transpose(0, 1).flatten(1, 2).to(options).contiguous();
}

GroupedQueryWeights merged_weights(const LayerProblem& problem, const SourceHeads& heads, const MergedHeads& merged) {
  const GroupedQueryWeights& source = problem.weights;
  GroupedQueryWeights result = source;
  const bool gain = !problem.source.qk_norm;  // as in source_heads
  store(from_internal(heads.planes, at::bmm(merged.query, heads.q), gain), source.q_proj, source.q_bias, result.q_proj,
        result.q_bias);
  store(from_internal(heads.planes, shared(merged.key, heads.k), gain), source.k_proj, source.k_bias, result.k_proj,
        result.k_bias);
  store(shared(merged.value, heads.v).flatten(0, 1), source.v_proj, source.v_bias, result.v_proj, result.v_bias);
  result.o_proj = joined_output(merged.o, source.o_proj.options());
  return result;
}

}  // namespace cinch
