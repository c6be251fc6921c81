#include "convert/solvers/latent_maps.h"

#include <ATen/ATen.h>

#include <vector>

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
  mask_ = causal_mask(heads.spec, at::arange(stream.tokens(), at::kLong), stream.tokens(), options);
}

at::Tensor LatentForward::features(const at::Tensor& input) const {
  return rotate_pairs(at::matmul(input, down_), table_);
}

at::Tensor LatentForward::head_outputs(const at::Tensor& input) const {
  const Projections x = stream_.project(input);
  const at::Tensor cached = features(input), latent = cached.slice(1, 0, value_up_.size(1));
  std::vector<at::Tensor> outputs;
  for (int64_t h = 0; h < heads_.spec.n_heads; ++h) {
    const at::Tensor query = rotate_pairs(at::matmul(x.q[h], query_[h]), table_);
    at::Tensor scores = at::matmul(query, cached.transpose(0, 1));
    if (x.k_scale.defined()) scores.mul_(x.k_scale[h / heads_.rep()].squeeze(1));
    const at::Tensor p = softmax_rows(heads_.spec, scores, mask_).p;
    outputs.push_back(at::matmul(at::matmul(p, latent), value_up_[h]));
  }
  return at::cat(outputs, 1);
}

at::Tensor LatentForward::output(const at::Tensor& head_outputs) const {
  const at::Tensor y = at::matmul(head_outputs, o_);
  return o_bias_.defined() ? y + o_bias_ : y;
}

}  // namespace cinch
