#include "convert/solvers/moments.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "convert/solvers/linear_algebra.h"

namespace cinch {
namespace {

at::Tensor gram(const at::Tensor& heads) {
  const at::Tensor flat = heads.transpose(0, 1).flatten(1, 2);
  return at::matmul(flat.transpose(0, 1), flat);
}

}  // namespace

HeadMoments head_moments(const HeadStream& stream) {
  at::Tensor key, query, value;
  int64_t heads = 0, dim = 0;
  for (const int64_t w : stream.fit()) {
    const Projections p = stream.project(w);
    heads = p.k.size(0);
    dim = p.k.size(2);
    accumulate(key, gram(p.k));
    accumulate(value, gram(p.v));
    accumulate(query, at::bmm(p.q.transpose(1, 2), p.q));
  }
  const double scale = 1.0 / static_cast<double>(static_cast<int64_t>(stream.fit().size()) * stream.tokens());
  return {.key = (fp64(key) * scale).reshape({heads, dim, heads, dim}),
          .query = fp64(query) * scale,
          .value = (fp64(value) * scale).reshape({heads, dim, heads, dim})};
}

at::Tensor measured_lags(const HeadStream& stream, int64_t windows) {
  const int64_t t = stream.tokens();
  const at::Tensor positions = at::arange(t, at::kLong);
  const at::Tensor lag = (positions.unsqueeze(1) - positions.unsqueeze(0)).clamp_min(0).flatten();
  at::Tensor mass = at::zeros({t}, at::kDouble);
  for (const int64_t w : stream.some_fit(windows)) {
    const Projections p = stream.project(w);
    // Keys of the future have probability 0, so that clamping their lag to 0 adds nothing.
    mass.index_add_(0, lag, fp64(stream.probabilities(p.q, p.k).sum(0)).flatten());
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
