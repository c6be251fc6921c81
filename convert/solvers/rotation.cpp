#include "convert/solvers/rotation.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <vector>

#include "attention/rope.h"
#include "convert/solvers/linear_algebra.h"
#include "core/errors.h"

namespace cinch {
namespace {

at::Tensor average(const at::Tensor& m, const at::Tensor& linear, const at::Tensor& antilinear) {
  const int64_t planes = m.size(-1) / 2;
  const auto rows = m.split(planes, -2);
  const auto top = rows[0].split(planes, -1), bottom = rows[1].split(planes, -1);
  const at::Tensor &a = top[0], &b = top[1], &c = bottom[0], &e = bottom[1];
  const at::Tensor alpha = at::complex((a + e) / 2, (c - b) / 2) * linear;
  const at::Tensor beta = at::complex((a - e) / 2, (c + b) / 2) * antilinear;
  const at::Tensor sum = alpha + beta, difference = alpha - beta;
  return at::cat(
      {at::cat({at::real(sum), -at::imag(difference)}, -1), at::cat({at::imag(sum), at::real(difference)}, -1)}, -2);
}

}  // namespace

HeadPlanes head_planes(const AttentionSpec& spec, int64_t length) {
  const int64_t d = spec.head_dim;
  if (d % 2 != 0) throw UnsupportedError(fmt::format("head_dim must be even, but is {}", d));
  const int64_t half = spec.rope.rotary_dim / 2;
  std::vector<int64_t> order(d);
  std::vector<double> frequency(d / 2, 0.0), gain(d, 1.0);
  if (half > 0) {
    const Rope rope(spec.rope);
    const std::vector<double>& inv_freq = rope.inv_freq(length);
    for (int64_t f = 0; f < half; ++f) {
      frequency[f] = inv_freq[f];
      order[f] = f;
      order[f + d / 2] = f + half;
      gain[f] = gain[f + d / 2] = rope.attention_scaling();
    }
  }
  for (int64_t f = half; f < d / 2; ++f) {
    order[f] = 2 * f;
    order[f + d / 2] = 2 * f + 1;
  }
  return {.head_dim = d,
          .planes = d / 2,
          .rotated = half,
          .order = at::tensor(order, at::kLong),
          .gain = at::tensor(gain, at::kDouble),
          .frequency = at::tensor(frequency, at::kDouble)};
}

at::Tensor to_internal(const HeadPlanes& planes, const at::Tensor& projection, bool with_gain) {
  at::Tensor heads = fp64(projection)
                         .reshape({projection.size(0) / planes.head_dim, planes.head_dim, projection.size(1)})
                         .index_select(1, planes.order);
  return with_gain ? heads * planes.gain.unsqueeze(-1) : heads;
}

at::Tensor from_internal(const HeadPlanes& planes, const at::Tensor& heads, bool with_gain) {
  const at::Tensor plain = with_gain ? heads / planes.gain.unsqueeze(-1) : heads;
  return at::empty_like(plain).index_copy_(1, planes.order, plain).reshape({-1, heads.size(2)});
}

at::Tensor plane_map(const at::Tensor& factors) {
  const at::Tensor re = at::diag_embed(at::real(factors)), im = at::diag_embed(at::imag(factors));
  return at::cat({at::cat({re, -im}, -1), at::cat({im, re}, -1)}, -2);
}

at::Tensor unrotated_dims(const HeadPlanes& planes) {
  return at::cat({at::arange(planes.rotated, planes.planes, at::kLong),
                  at::arange(planes.planes + planes.rotated, planes.head_dim, at::kLong)});
}

RotationTable rotation_table(const HeadPlanes& planes, int64_t first, int64_t count, const at::TensorOptions& options) {
  const at::Tensor angles = at::outer(at::arange(first, first + count, at::kDouble), planes.frequency);
  return {angles.cos().to(options), angles.sin().to(options)};
}

RotationTable select_positions(const RotationTable& table, const at::Tensor& positions) {
  return {table.cos.index_select(0, positions), table.sin.index_select(0, positions)};
}

at::Tensor rotate(const at::Tensor& x, const RotationTable& table, bool inverse) {
  const auto halves = x.chunk(2, -1);
  const at::Tensor &re = halves[0], &im = halves[1];
  const at::Tensor sin = inverse ? -table.sin : table.sin;
  return at::cat({re * table.cos - im * sin, re * sin + im * table.cos}, -1);
}

LagFactors lag_factors(const HeadPlanes& planes, const at::Tensor& weights) {
  const at::Tensor angles = at::outer(at::arange(weights.size(0), at::kDouble), planes.frequency);
  const at::Tensor phases = at::complex(angles.cos(), angles.sin());
  const at::Tensor weighted = (phases * weights.unsqueeze(1)).transpose(0, 1);
  return {at::matmul(weighted, phases.conj()), at::matmul(weighted, phases)};
}

at::Tensor rotation_average(const at::Tensor& m, const LagFactors& factors) {
  return average(m, factors.linear, factors.antilinear);
}

at::Tensor rotation_average_transposed(const at::Tensor& m, const LagFactors& factors) {
  return average(m, factors.linear.conj(), factors.antilinear.conj());
}

}  // namespace cinch
