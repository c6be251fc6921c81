#include "convert/solvers/latent_weights.h"

#include <ATen/ATen.h>

#include <vector>

#include "convert/solvers/linear_algebra.h"

namespace cinch {
namespace {

/// Maps (.., D) on internal queries as maps on the source's q_proj output; with QK-norm on that output over its rms.
at::Tensor on_source_queries(const SourceHeads& heads, const at::Tensor& maps) {
  const at::Tensor& gain = heads.q_norm.defined() ? heads.q_norm : heads.planes.gain;
  return at::empty_like(maps).index_copy_(-1, heads.planes.order, maps * gain);
}

/// Rows (n, C) apart: the weights (n, E), and the bias (n) where the inputs carry a column of ones.
struct Rows {
  at::Tensor weight, bias;
};
Rows split_bias(const at::Tensor& rows, bool biased) {
  if (!biased) return {rows, {}};
  const int64_t e = rows.size(1) - 1;
  return {rows.slice(1, 0, e), rows.select(1, e)};
}

}  // namespace

AttentionSpec latent_spec(const AttentionSpec& source, int64_t rank, int64_t rotary_dim, bool output_bias) {
  AttentionSpec spec = source;
  spec.kind = AttentionKind::latent;
  spec.kv_lora_rank = rank;
  spec.qk_nope_head_dim = spec.v_head_dim = source.head_dim;
  spec.qk_rope_head_dim = rotary_dim;
  spec.output_bias = source.output_bias || output_bias;
  spec.key_scale_tail = source.qk_norm;
  return spec;
}

LatentLayerWeights latent_weights(const GroupedQueryWeights& source, const SourceHeads& heads, const LatentMaps& maps) {
  const int64_t n = heads.spec.n_heads, d = heads.spec.head_dim, r = maps.rank(), dr = maps.rotary_dim();
  const bool biased = heads.spec.qkv_bias;
  const auto options = source.q_proj.options();
  const auto cast = [&](const at::Tensor& x) { return x.defined() ? x.to(options).contiguous() : x; };

  const at::Tensor query = on_source_queries(heads, maps.query);  // (H, R + Dr, D)
  at::Tensor q = fp64(source.q_proj);
  if (biased) q = at::cat({q, fp64(source.q_bias).unsqueeze(1)}, 1);
  q = q.reshape({n, d, -1});
  const Rows q_rows = split_bias(at::cat({q, at::bmm(query.slice(1, r), q)}, 1).flatten(0, 1), biased);
  const Rows kv_a = split_bias(at::cat({maps.down, maps.rotary_key}, 0), biased);
  const at::Tensor kv_b = at::cat({query.slice(1, 0, r).transpose(1, 2), maps.value_up}, 1);  // (H, 2D, R)

  LatentLayerWeights result;
  result.spec = latent_spec(heads.spec, r, dr, maps.o_bias.defined());
  const at::Tensor inv_freq = maps.inv_freq.contiguous();
  result.spec.rope_inv_freq.assign(inv_freq.const_data_ptr<double>(), inv_freq.const_data_ptr<double>() + dr / 2);
  result.weights = {.q_proj = cast(q_rows.weight),
                    .kv_a_proj = cast(kv_a.weight),
                    .kv_b_proj = cast(kv_b.flatten(0, 1)),
                    .o_proj = cast(maps.o.permute({1, 0, 2}).flatten(1, 2)),
                    .k_norm_proj = heads.spec.qk_norm ? source.k_proj : at::Tensor(),
                    .q_bias = cast(q_rows.bias),
                    .kv_a_bias = cast(kv_a.bias),
                    .o_bias = cast(maps.o_bias),
                    .k_norm_bias = heads.spec.qk_norm && biased ? source.k_bias : at::Tensor()};
  result.weights.check(result.spec);
  return result;
}

}  // namespace cinch
