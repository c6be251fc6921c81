#include "convert/solvers/moments.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace cinch {
namespace {

at::Tensor gram(const at::Tensor& heads) {
  const at::Tensor flat = heads.transpose(0, 1).flatten(1, 2);
  return at::matmul(flat.transpose(0, 1), flat).to(at::kCPU, at::kDouble);
}

}  // namespace

HeadMoments head_moments(const HeadStream& stream) {
  at::Tensor key, query, value;
  const auto add = [](at::Tensor& sum, const at::Tensor& term) { sum = sum.defined() ? sum.add_(term) : term; };
  int64_t heads = 0, dim = 0;
  for (const int64_t w : stream.fit()) {
    const Projections p = stream.project(w);
    heads = p.k.size(0);
    dim = p.k.size(2);
    add(key, gram(p.k));
    add(value, gram(p.v));
    add(query, at::bmm(p.q.transpose(1, 2), p.q).to(at::kCPU, at::kDouble));
  }
  const double scale = 1.0 / static_cast<double>(static_cast<int64_t>(stream.fit().size()) * stream.tokens());
  return {.key = (key * scale).reshape({heads, dim, heads, dim}),
          .query = query * scale,
          .value = (value * scale).reshape({heads, dim, heads, dim})};
}

at::Tensor measured_lags(const HeadStream& stream, int64_t windows) {
  const int64_t t = stream.tokens();
  const at::Tensor positions = at::arange(t, at::kLong);
  const at::Tensor lag = (positions.unsqueeze(1) - positions.unsqueeze(0)).clamp_min(0).flatten();
  at::Tensor mass = at::zeros({t}, at::kDouble);
  for (const int64_t w : stream.some_fit(windows)) {
    const Projections p = stream.project(w);
    // Keys of the future have probability 0, so that clamping their lag to 0 adds nothing.
    mass.index_add_(0, lag, stream.probabilities(p.q, p.k).sum(0).to(at::kCPU, at::kDouble).flatten());
  }
  return mass / mass.sum();
}

at::Tensor lag_weights(const at::Tensor& measured, double tail, int64_t context, int64_t window) {
  context = std::max(context, measured.size(0));
  if (window > 0) context = std::min(context, window);
  const int64_t seen = std::min(context, measured.size(0));
  at::Tensor weights = at::zeros({context}, at::kDouble);
  weights.slice(0, 0, seen).add_(measured.slice(0, 0, seen) / measured.slice(0, 0, seen).sum(), 1.0 - tail);
  const at::Tensor falling = at::arange(1, context + 1, at::kDouble).reciprocal();
  return weights.add_(falling / falling.sum(), tail);
}

}  // namespace cinch
