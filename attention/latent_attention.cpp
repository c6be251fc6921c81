#include "attention/latent_attention.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attention/attention_kernel.h"
#include "attention/projection.h"
#include "attention/rms_norm.h"
#include "attention/rotation.h"
#include "attention/shape_report.h"

namespace cinch {
namespace {

void check_sizes(const AttentionSpec& s) {
  ShapeReport report;
  const auto require = [&](bool holds, const char* rule, int64_t found) {
    report.add_unless(holds, fmt::format("{}, found {}", rule, found));
  };
  require(s.kv_lora_rank > 0, "kv_lora_rank must be positive", s.kv_lora_rank);
  require(s.qk_nope_head_dim >= 0, "qk_nope_head_dim must not be negative", s.qk_nope_head_dim);
  require(s.qk_rope_head_dim >= 0 && s.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim must be even and not negative",
          s.qk_rope_head_dim);
  require(s.qk_nope_head_dim + s.qk_rope_head_dim > 0, "a query head needs at least one number", 0);
  require(s.v_head_dim > 0, "v_head_dim must be positive", s.v_head_dim);
  require(s.n_kv_heads > 0 && s.n_heads % s.n_kv_heads == 0, "n_kv_heads must divide n_heads", s.n_kv_heads);
  require(2 * static_cast<int64_t>(s.rope_inv_freq.size()) == s.qk_rope_head_dim,
          "rope_inv_freq needs one frequency per two numbers of qk_rope_head_dim",
          static_cast<int64_t>(s.rope_inv_freq.size()));
  report.add_unless(
      std::all_of(s.rope_inv_freq.begin(), s.rope_inv_freq.end(), [](double value) { return std::isfinite(value); }),
      "rope_inv_freq must be finite");
  report.add_unless(s.qk_norm == s.key_scale_tail, "key_scale_tail goes with QK-norm, and only with it");
  require(s.q_lora_rank >= 0, "q_lora_rank must not be negative", s.q_lora_rank);
  require(!s.qk_norm || s.qk_nope_head_dim == s.head_dim, "with QK-norm qk_nope_head_dim must be head_dim",
          s.qk_nope_head_dim);
  report.throw_if_any("latent attention");
}

/// 1 / rms over the last axis, (.., 1), in fp32 for half types.
at::Tensor inverse_rms(const at::Tensor& x, double eps) {
  const at::Tensor wide = x.to(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  return at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
}

/// x (B, H, T, in) through a matrix of its own per head, maps (H, in, out): (B, H, T, out).
at::Tensor through_heads(const at::Tensor& x, const at::Tensor& maps) {
  const int64_t batch = x.size(0), tokens = x.size(2);
  const at::Tensor rows = x.transpose(0, 1).flatten(1, 2);  // (H, B*T, in)
  return at::bmm(rows, maps).unflatten(1, {batch, tokens}).transpose(0, 1);
}

}  // namespace

LatentForm cheaper_latent_form(const AttentionSpec& spec, int64_t queries, int64_t keys) {
  // Multiplications per query head. Both forms meet every map once per token, absorbed for the queries and unabsorbed
  // for all keys; then each pair of query and key costs the widths of key and value.
  const auto t = static_cast<double>(queries), s = static_cast<double>(keys);
  const auto r = static_cast<double>(spec.kv_lora_rank), dn = static_cast<double>(spec.qk_nope_head_dim);
  const auto dr = static_cast<double>(spec.qk_rope_head_dim), dv = static_cast<double>(spec.v_head_dim);
  const double absorbed = t * (dn + dv) * r + t * s * (2 * r + dr);
  const double unabsorbed = s * (dn + dv) * r + t * s * (dn + dr + dv);
  return absorbed < unabsorbed ? LatentForm::absorbed : LatentForm::unabsorbed;
}

LatentWeights LatentWeights::to(at::ScalarType dtype, at::Device device) const {
  LatentWeights result = *this;
  for (at::Tensor* tensor : {&result.q_proj, &result.kv_a_proj, &result.kv_b_proj, &result.o_proj, &result.k_norm_proj,
                             &result.q_bias, &result.kv_a_bias, &result.o_bias, &result.k_norm_bias, &result.q_a_proj,
                             &result.q_a_norm, &result.q_a_bias, &result.kv_a_norm}) {
    *tensor = moved(*tensor, dtype, device);
  }
  return result;
}

void LatentWeights::check(const AttentionSpec& spec) const {
  const int64_t e = spec.hidden_size, r = spec.kv_lora_rank, dn = spec.qk_nope_head_dim, dr = spec.qk_rope_head_dim;
  const int64_t q = spec.n_heads * (dn + dr), key = spec.n_kv_heads * spec.head_dim, narrow = spec.q_lora_rank;
  ShapeReport report;
  report.expect("q_proj", q_proj, {q, narrow > 0 ? narrow : e});
  report.expect("q_a_proj", q_a_proj, {narrow, e}, narrow > 0);
  report.expect("q_a_norm", q_a_norm, {narrow}, narrow > 0);
  report.expect("q_a_bias", q_a_bias, {narrow}, narrow > 0 && spec.down_bias);
  report.expect("kv_a_norm", kv_a_norm, {r}, spec.latent_norm);
  report.expect("kv_a_proj", kv_a_proj, {r + dr, e});
  report.expect("kv_b_proj", kv_b_proj, {spec.n_heads * (dn + spec.v_head_dim), r});
  report.expect("o_proj", o_proj, {e, spec.n_heads * spec.v_head_dim});
  report.expect("k_norm_proj", k_norm_proj, {key, e}, spec.key_scale_tail);
  report.expect("q_bias", q_bias, {q}, spec.qkv_bias);
  report.expect("kv_a_bias", kv_a_bias, {r + dr}, spec.qkv_bias || spec.down_bias);
  report.expect("o_bias", o_bias, {e}, spec.output_bias);
  report.expect("k_norm_bias", k_norm_bias, {key}, spec.key_scale_tail && spec.qkv_bias);
  report.throw_if_any("latent attention weights");
}

LatentAttention::LatentAttention(AttentionSpec spec, LatentWeights weights, LatentForm form)
    : spec_(std::move(spec)), weights_(std::move(weights)), form_(form), rope_(spec_.rope_inv_freq) {
  check_sizes(spec_);
  weights_.check(spec_);
}

LatentAttention::Heads LatentAttention::project(const at::Tensor& x) const {
  const int64_t dn = spec_.qk_nope_head_dim, dr = spec_.qk_rope_head_dim, r = spec_.kv_lora_rank;
  at::Tensor narrow = x;  // (B, T, E), or (B, T, Q)
  if (spec_.q_lora_rank > 0) {
    narrow = rms_norm(biased_linear(x, weights_.q_a_proj, weights_.q_a_bias), weights_.q_a_norm, spec_.latent_norm_eps);
  }
  at::Tensor q = split_heads(biased_linear(narrow, weights_.q_proj, weights_.q_bias), spec_.n_heads);
  if (spec_.qk_norm) q = (q * inverse_rms(q.narrow(-1, 0, dn), spec_.qk_norm_eps)).to(x.scalar_type());
  const at::Tensor kv = biased_linear(x, weights_.kv_a_proj, weights_.kv_a_bias);  // (B, T, R+Dr)
  Heads heads{q.narrow(-1, 0, dn), q.narrow(-1, dn, dr), kv.narrow(-1, 0, r), kv.narrow(-1, r, dr), {}};
  if (spec_.latent_norm) heads.latent = rms_norm(heads.latent, weights_.kv_a_norm, spec_.latent_norm_eps);
  if (spec_.key_scale_tail) {
    const at::Tensor key = biased_linear(x, weights_.k_norm_proj, weights_.k_norm_bias);  // (B, T, K*D)
    const at::Tensor scale = inverse_rms(key.unflatten(-1, {spec_.n_kv_heads, -1}), spec_.qk_norm_eps);
    heads.key_scale = scale.squeeze(-1).to(x.scalar_type());
  }
  return heads;
}

at::Tensor LatentAttention::head_outputs(const at::Tensor& x, int64_t first, int64_t, KvCache* cache,
                                         const at::Tensor& documents) const {
  const Heads heads = project(x);
  RotaryTable table = rope_.table(first, x.size(1), rotary_type(x.scalar_type(), cache != nullptr), x.device());
  if (spec_.rotary_scaling != 1.0) table = {table.cos * spec_.rotary_scaling, table.sin * spec_.rotary_scaling};
  at::Tensor entries = at::cat({heads.latent, SlotRope::apply(heads.k_rope, table)}, -1).unsqueeze(1);
  if (cache != nullptr) entries = rounded_per_channel(entries, cache->precision());
  // Key scales multiply whole scores and are few: they stay at 16 bits.
  if (spec_.key_scale_tail) entries = at::cat({entries, heads.key_scale.unsqueeze(1)}, -1);
  Seen seen{heads.q_nope, SlotRope::apply(heads.q_rope, table), entries, first, first, documents};
  if (cache != nullptr) {
    const KvCache::View view = cache->append(seen.entries, seen.entries.narrow(-1, 0, 0), spec_.window);
    seen.entries = view.k;
    seen.first_key = view.first_position;
  }
  return attend_to(seen);
}

at::Tensor LatentAttention::attend_to(const Seen& seen) const {
  return join_heads(absorbs(seen.q_rope.size(2), seen.entries.size(2)) ? absorbed(seen) : unabsorbed(seen));
}

at::Tensor LatentAttention::output(const at::Tensor& head_outputs) const {
  return biased_linear(head_outputs, weights_.o_proj, weights_.o_bias);
}

bool LatentAttention::absorbs(int64_t queries, int64_t keys) const {
  const LatentForm form = form_ == LatentForm::cheapest ? cheaper_latent_form(spec_, queries, keys) : form_;
  return form == LatentForm::absorbed;
}

at::Tensor LatentAttention::absorbed(const Seen& seen) const {
  const int64_t dn = spec_.qk_nope_head_dim, dr = spec_.qk_rope_head_dim, r = spec_.kv_lora_rank;
  const at::Tensor maps = weights_.kv_b_proj.unflatten(0, {spec_.n_heads, dn + spec_.v_head_dim});  // (H, Dn+Dv, R)
  const at::Tensor q =
      at::cat({through_heads(seen.q_nope, maps.narrow(1, 0, dn)), seen.q_rope}, -1);  // (B, H, T, R+Dr)
  at::Tensor k = seen.entries.narrow(-1, 0, r + dr);                                  // (B, 1, S, R+Dr)
  at::Tensor v = seen.entries.narrow(-1, 0, r);                                       // (B, 1, S, R)
  if (spec_.key_scale_tail) {
    // The scale of a score is that of its key: one scaled copy of the shared key for each KV head of the source.
    k = k * key_scale(seen);  // (B, K, S, R+Dr)
    v = v.expand({-1, spec_.n_kv_heads, -1, -1});
  }
  const at::Tensor sums = attend_to(seen, q, k, v);  // (B, H, T, R)
  return through_heads(sums, maps.narrow(1, dn, spec_.v_head_dim).transpose(1, 2));
}

at::Tensor LatentAttention::unabsorbed(const Seen& seen) const {
  const int64_t dn = spec_.qk_nope_head_dim, dr = spec_.qk_rope_head_dim, r = spec_.kv_lora_rank;
  const at::Tensor latent = seen.entries.select(1, 0).narrow(-1, 0, r);                      // (B, S, R)
  const at::Tensor kv = split_heads(at::linear(latent, weights_.kv_b_proj), spec_.n_heads);  // (B, H, S, Dn+Dv)
  const at::Tensor shared = seen.entries.narrow(-1, r, dr).expand({-1, spec_.n_heads, -1, -1});
  at::Tensor k = at::cat({kv.narrow(-1, 0, dn), shared}, -1);  // (B, H, S, Dn+Dr)
  if (spec_.key_scale_tail) k = k * key_scale(seen).repeat_interleave(spec_.group_size(), 1);
  return attend_to(seen, at::cat({seen.q_nope, seen.q_rope}, -1), k, kv.narrow(-1, dn, spec_.v_head_dim));
}

at::Tensor LatentAttention::key_scale(const Seen& seen) const {
  const int64_t before = spec_.kv_lora_rank + spec_.qk_rope_head_dim;
  return seen.entries.narrow(-1, before, spec_.n_kv_heads).transpose(1, 3);
}

at::Tensor LatentAttention::attend_to(const Seen& seen, at::Tensor q, at::Tensor k, at::Tensor v) const {
  AttentionRequest request;
  request.q = std::move(q);
  request.k = std::move(k);
  request.v = std::move(v);
  request.first_query = seen.first_query;
  request.first_key = seen.first_key;
  request.scale = spec_.scale;
  request.window = spec_.window;
  request.softcap = spec_.softcap;
  request.documents = seen.documents;
  return attend(request);
}

}  // namespace cinch
