#include "convert/solvers/latent_maps.h"

#include <ATen/ATen.h>

#include <vector>

#include "attention/attention_kernel.h"
#include "convert/solvers/softmax_rows.h"

namespace cinch {

at::Tensor rotate_pairs(const at::Tensor& x, const RotationTable& table, bool inverse) {
  const int64_t rotary = 2 * table.cos.size(-1), kept = x.size(-1) - rotary;
  if (rotary == 0) return x;
  const at::Tensor pairs = x.slice(-1, kept).unflatten(-1, {rotary / 2, 2});
  const at::Tensor re = pairs.select(-1, 0), im = pairs.select(-1, 1);
  const at::Tensor sin = inverse ? -table.sin : table.sin;
  const at::Tensor turned = at::stack({re * table.cos - im * sin, re * sin + im * table.cos}, -1).flatten(-2);
  return at::cat({x.slice(-1, 0, kept), turned}, -1);
}

RotationTable pair_table(const at::Tensor& inv_freq, int64_t count, const at::TensorOptions& options) {
  const at::Tensor angles = at::outer(at::arange(count, at::kDouble), inv_freq);
  return {angles.cos().to(options), angles.sin().to(options)};
}

LatentForward::LatentForward(const HeadStream& stream, const SourceHeads& heads, const LatentMaps& maps)
    : stream_(stream), heads_(heads) {
  const auto options = stream.options();
  const auto cast = [&](const at::Tensor& x) { return x.to(options).contiguous(); };
  table_ = pair_table(maps.inv_freq, stream.tokens(), options);
  down_ = cast(at::cat({maps.down, maps.rotary_key}, 0).transpose(0, 1));
  query_ = cast(maps.query.transpose(1, 2));
  value_up_ = cast(maps.value_up.transpose(1, 2));
  o_ = cast(maps.o.transpose(1, 2).flatten(0, 1));
  if (maps.o_bias.defined()) o_bias_ = cast(maps.o_bias);
}

at::Tensor LatentForward::features(const at::Tensor& input) const {
  return rotate_pairs(at::matmul(input, down_), table_);
}

at::Tensor LatentForward::head_outputs(const at::Tensor& input) const {
  const Projections x = stream_.project(input);
  const at::Tensor cached = features(input);
  const at::Tensor query = rotate_pairs(at::bmm(x.q, query_), table_);  // (H, T, R + Dr)
  const at::Tensor averages =
      x.k_scale.defined() ? scaled_averages(query, cached, x.k_scale) : shared_head_averages(query, cached);
  return at::bmm(averages, value_up_).transpose(0, 1).flatten(1, 2);
}

at::Tensor LatentForward::shared_head_averages(const at::Tensor& query, const at::Tensor& cached) const {
  // Keys and values are one tensor to the kernel; the averages of the rotary part are not used.
  const at::Tensor shared = cached.unsqueeze(0).unsqueeze(0);
  return attend({.q = query.unsqueeze(0),
                 .k = shared,
                 .v = shared,
                 .scale = heads_.spec.scale,
                 .window = heads_.spec.window,
                 .softcap = heads_.spec.softcap})
      .squeeze(0)
      .slice(2, 0, value_up_.size(1));
}

at::Tensor LatentForward::scaled_averages(const at::Tensor& query, const at::Tensor& cached,
                                          const at::Tensor& key_scale) const {
  const int64_t t = query.size(1);
  const at::Tensor latent = cached.slice(1, 0, value_up_.size(1));
  const at::Tensor mask = causal_mask(heads_.spec, at::arange(t, at::kLong), t, query.options());
  at::Tensor averages = at::empty({heads_.spec.n_heads, t, latent.size(1)}, query.options());
  for (const HeadPart& part : stream_.head_parts()) {
    const at::Tensor scale = part.of_keys(key_scale).transpose(-2, -1);
    const at::Tensor scores = at::matmul(part.of_queries(query), cached.transpose(0, 1)).mul_(scale);
    part.of_queries(averages).copy_(at::matmul(softmax_rows(heads_.spec, scores, mask).p, latent));
  }
  return averages;
}

at::Tensor LatentForward::output(const at::Tensor& head_outputs) const {
  const at::Tensor y = at::matmul(head_outputs, o_);
  return o_bias_.defined() ? y + o_bias_ : y;
}

}  // namespace cinch
