#include "convert/solvers/latent_moments.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "convert/solvers/softmax_rows.h"

namespace cinch {
namespace {

at::Tensor fp64(const at::Tensor& x) { return x.to(at::kCPU, at::kDouble); }

at::Tensor gram(const at::Tensor& rows) { return fp64(at::matmul(rows.transpose(0, 1), rows)); }

}  // namespace

at::Tensor joint_rows(const Projections& x) { return at::cat({x.linear_keys(), x.v}, 0).transpose(0, 1).flatten(1, 2); }

WeighedAttention::WeighedAttention(const HeadStream& stream, const SourceHeads& heads)
    : heads_(heads),
      table_(stream.table()),
      mask_(causal_mask(heads.spec, at::arange(stream.tokens(), at::kLong), stream.tokens(), stream.options())),
      metric_(at::bmm(heads.o.transpose(1, 2), heads.o).to(stream.options())) {}

HeadAttention WeighedAttention::head(const Projections& x, int64_t h) const {
  const int64_t kv = h / heads_.rep();
  const at::Tensor &v = x.v[kv], &metric = metric_[h];
  const at::Tensor scores = at::matmul(rotate(x.q[h], table_), rotate(x.k[kv], table_).transpose(0, 1));
  const SoftmaxRows rows = softmax_rows(heads_.spec, scores, mask_);
  HeadAttention result{rows.p, {}, at::matmul(rows.p, v)};
  const at::Tensor value_power = (at::matmul(v, metric) * v).sum(1);
  const at::Tensor seen = at::matmul(result.output, metric);
  const at::Tensor output_power = (seen * result.output).sum(1, /*keepdim=*/true);
  at::Tensor weights = at::matmul(seen, v.transpose(0, 1)).mul_(-2).add_(value_power).add_(output_power).clamp_min_(0);
  weights.mul_(rows.p).mul_(rows.p);
  if (rows.slope.defined()) weights.mul_(rows.slope.square());
  if (x.k_scale.defined()) weights.mul_(x.k_scale[kv].squeeze(1).square());
  result.weights = weights;
  return result;
}

at::Tensor lag_sums(const at::Tensor& weights) {
  const int64_t t = weights.size(0);
  // Element (t, t - D) lies at t (T + 1) - D: with a row of zeros in front, each lag is a column of a skewed view.
  // Where t < D the view meets keys after a query, which weigh nothing.
  const at::Tensor padded = at::cat({at::zeros({t}, weights.options()), weights.flatten()});
  return padded.as_strided({t, t}, {t + 1, 1}, 1).sum(0, /*keepdim=*/false, at::kDouble).flip(0);
}

LatentMoments latent_moments(const HeadStream& stream, const SourceHeads& heads) {
  const int64_t t = stream.tokens(), d = heads.spec.head_dim, n = heads.spec.n_heads, kv = heads.spec.n_kv_heads;
  const auto windows = static_cast<double>(stream.fit().size());
  const WeighedAttention attention(stream, heads);
  const auto zeros = [](std::vector<int64_t> shape) { return at::zeros(shape, at::kDouble); };
  LatentMoments m{.joint = zeros({2 * kv * d, 2 * kv * d}),
                  .joint_mean = zeros({2 * kv * d}),
                  .first = zeros({2 * kv * d, 2 * kv * d}),
                  .query = zeros({n, d, d}),
                  .output = zeros({n, d, d}),
                  .output_mean = zeros({n, d}),
                  .lags = zeros({n, t}),
                  .output_energy = 0,
                  .window = t};
  for (const int64_t w : stream.fit()) {
    const Projections x = stream.project(w);
    const at::Tensor z = joint_rows(x);
    const at::Tensor later = z.slice(0, 1), first = z.slice(0, 0, 1);
    m.joint += gram(later);
    m.first += gram(first);
    m.joint_mean += later.sum(0, /*keepdim=*/false, at::kDouble);
    std::vector<at::Tensor> outputs;
    for (int64_t h = 0; h < n; ++h) {
      const HeadAttention a = attention.head(x, h);
      m.query[h] += fp64(at::matmul((x.q[h] * a.weights.sum(1, true)).transpose(0, 1), x.q[h]));
      m.output[h] += gram(a.output);
      m.output_mean[h] += a.output.sum(0, /*keepdim=*/false, at::kDouble);
      a.weights.select(1, 0).zero_();
      m.lags[h] += lag_sums(a.weights);
      outputs.push_back(a.output);
    }
    m.output_energy += stream.output(at::stack(outputs)).slice(0, 1).square().sum(at::kDouble).item<double>();
  }
  const double tokens = windows * static_cast<double>(t),
               later = windows * static_cast<double>(std::max<int64_t>(t - 1, 1));
  m.joint /= later;
  m.joint_mean /= later;
  m.first /= windows;
  for (at::Tensor* x : {&m.query, &m.output, &m.output_mean, &m.lags}) *x /= tokens;
  m.output_energy /= later;
  return m;
}

}  // namespace cinch
