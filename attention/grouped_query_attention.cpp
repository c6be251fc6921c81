#include "attention/grouped_query_attention.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "attention/attention_kernel.h"
#include "attention/projection.h"
#include "attention/rms_norm.h"
#include "attention/rotation.h"
#include "attention/shape_report.h"
#include "core/errors.h"

namespace cinch {

GroupedQueryWeights GroupedQueryWeights::to(at::ScalarType dtype, at::Device device) const {
  GroupedQueryWeights result = *this;
  for (at::Tensor* tensor : {&result.q_proj, &result.k_proj, &result.v_proj, &result.o_proj, &result.q_bias,
                             &result.k_bias, &result.v_bias, &result.o_bias, &result.q_norm, &result.k_norm}) {
    *tensor = moved(*tensor, dtype, device);
  }
  return result;
}

void GroupedQueryWeights::check(const AttentionSpec& spec) const {
  const int64_t q_rows = spec.n_heads * spec.head_dim, kv_rows = spec.n_kv_heads * spec.head_dim;
  ShapeReport report;
  report.expect("q_proj", q_proj, {q_rows, spec.hidden_size});
  report.expect("k_proj", k_proj, {kv_rows, spec.hidden_size});
  report.expect("v_proj", v_proj, {kv_rows, spec.hidden_size});
  report.expect("o_proj", o_proj, {spec.hidden_size, q_rows});
  report.expect("q_bias", q_bias, {q_rows}, spec.qkv_bias);
  report.expect("k_bias", k_bias, {kv_rows}, spec.qkv_bias);
  report.expect("v_bias", v_bias, {kv_rows}, spec.qkv_bias);
  report.expect("o_bias", o_bias, {spec.hidden_size}, spec.output_bias);
  report.expect("q_norm", q_norm, {spec.head_dim}, spec.qk_norm);
  report.expect("k_norm", k_norm, {spec.head_dim}, spec.qk_norm);
  report.throw_if_any("attention weights");
}

GroupedQueryAttention::GroupedQueryAttention(AttentionSpec spec, GroupedQueryWeights weights)
    : spec_(std::move(spec)), weights_(std::move(weights)), rope_(spec_.rope) {
  if (spec_.n_kv_heads < 1 || spec_.n_heads % spec_.n_kv_heads != 0) {
    throw ShapeError(fmt::format("{} query heads do not divide into {} KV heads", spec_.n_heads, spec_.n_kv_heads));
  }
  weights_.check(spec_);
}

GroupedQueryAttention::Heads GroupedQueryAttention::project(const at::Tensor& x) const {
  Heads heads{split_heads(biased_linear(x, weights_.q_proj, weights_.q_bias), spec_.n_heads),
              split_heads(biased_linear(x, weights_.k_proj, weights_.k_bias), spec_.n_kv_heads),
              split_heads(biased_linear(x, weights_.v_proj, weights_.v_bias), spec_.n_kv_heads)};
  if (spec_.qk_norm) {
    heads.q = rms_norm(heads.q, weights_.q_norm, spec_.qk_norm_eps);
    heads.k = rms_norm(heads.k, weights_.k_norm, spec_.qk_norm_eps);
  }
  return heads;
}

at::Tensor GroupedQueryAttention::head_outputs(const at::Tensor& x, int64_t first, int64_t length, KvCache* cache,
                                               const at::Tensor& documents) const {
  const int64_t count = x.size(1);
  const Heads heads = project(x);
  const Rope::Table table = rope_.table(first, count, length > 0 ? length : first + count,
                                        rotary_type(x.scalar_type(), cache != nullptr), x.device());
  AttentionRequest request;
  request.q = Rope::apply(heads.q, table);
  request.k = Rope::apply(heads.k, table);
  request.v = heads.v;
  request.first_query = request.first_key = first;
  request.scale = spec_.scale;
  request.window = spec_.window;
  request.softcap = spec_.softcap;
  request.documents = documents;
  if (cache != nullptr) {
    const CachePrecision& precision = cache->precision();
    KvCache::View seen =
        cache->append(rounded_per_channel(request.k, precision), rounded_per_token(request.v, precision), spec_.window);
    request.k = std::move(seen.k);
    request.v = std::move(seen.v);
    request.first_key = seen.first_position;
  }
  return join_heads(attend(request));
}

at::Tensor GroupedQueryAttention::output(const at::Tensor& head_outputs) const {
  return biased_linear(head_outputs, weights_.o_proj, weights_.o_bias);
}

}  // namespace cinch
