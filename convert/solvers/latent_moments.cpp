#include "convert/solvers/latent_moments.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "convert/solvers/linear_algebra.h"
#include "convert/solvers/softmax_rows.h"

namespace cinch {
namespace {

constexpr int64_t kBlock = 128;         // queries: half a mebibyte of scores at 1024 keys stays in a core's cache
constexpr int64_t kDeviceBlock = 1024;  // on devices, where launching costs more than the keys after a query

at::Tensor gram(const at::Tensor& rows) { return at::matmul(rows.transpose(-2, -1), rows); }

}  // namespace

at::Tensor joint_rows(const Projections& x) { return at::cat({x.linear_keys(), x.v}, 0).transpose(0, 1).flatten(1, 2); }

WeighedAttention::WeighedAttention(const HeadStream& stream, const SourceHeads& heads)
    : heads_(heads), table_(stream.table()), metric_(at::bmm(heads.o.transpose(1, 2), heads.o).to(stream.options())) {
  const int64_t block = stream.options().device().is_cpu() ? kBlock : kDeviceBlock;
  for (int64_t first = 0; first < stream.tokens(); first += block) {
    const int64_t end = std::min(first + block, stream.tokens());
    masks_.push_back(causal_mask(heads.spec, at::arange(first, end, at::kLong), end, stream.options()));
  }
}

void WeighedAttention::for_each_block(const Projections& x, const HeadPart& part,
                                      const std::function<void(const HeadBlock&)>& use) const {
  const at::Tensor v = part.of_keys(x.v), metric = part.of_queries(metric_);
  const at::Tensor q = rotate(part.of_queries(x.q), table_), k = rotate(part.of_keys(x.k), table_);
  const at::Tensor value_power = (at::matmul(v, metric) * v).sum(-1).unsqueeze(-2);
  const at::Tensor key_scale = x.k_scale.defined() ? part.of_keys(x.k_scale).transpose(-2, -1) : at::Tensor();
  HeadBlock block;
  for (const at::Tensor& mask : masks_) {
    const int64_t end = mask.size(1);
    const at::Tensor keys = k.slice(-2, 0, end), values = v.slice(-2, 0, end);
    const SoftmaxRows rows =
        softmax_rows(heads_.spec, at::matmul(q.slice(-2, block.first, end), keys.transpose(-2, -1)), mask);
    block.p = rows.p;
    block.output = at::matmul(rows.p, values);
    const at::Tensor seen = at::matmul(block.output, metric);
    const at::Tensor output_power = (seen * block.output).sum(-1, /*keepdim=*/true);
    block.weights = output_power + value_power.slice(-1, 0, end);
    const at::Tensor columns = values.transpose(-2, -1);
    part.head ? block.weights.addmm_(seen, columns, 1, -2) : block.weights.baddbmm_(seen, columns, 1, -2);
    block.weights.clamp_min_(0).mul_(rows.p).mul_(rows.p);
    if (rows.slope.defined()) block.weights.mul_(rows.slope.square());
    if (key_scale.defined()) block.weights.mul_(key_scale.slice(-1, 0, end).square());
    use(block);
    block.first = end;
  }
}

at::Tensor lag_sums(const at::Tensor& weights) {
  const int64_t m = weights.size(-2), s = weights.size(-1);
  // With S zeros in front, element (i, S - M + i - D) lies at i (S + 1) + 2S - M - D: each lag is a column of a skewed
  // view. Where a query has no key at a lag, the view meets keys after a query, which weigh nothing.
  const at::Tensor padded = at::constant_pad_nd(weights.flatten(-2), {s, 0});
  return padded.slice(-1, s - m + 1).unfold(-1, s, s + 1).sum(-2).to(at::kDouble).flip(-1);
}

LatentMoments latent_moments(const HeadStream& stream, const SourceHeads& heads) {
  const int64_t t = stream.tokens(), d = heads.spec.head_dim, n = heads.spec.n_heads;
  const auto windows = static_cast<double>(stream.fit().size());
  const WeighedAttention attention(stream, heads);
  const auto zeros = [&](std::vector<int64_t> shape) { return at::zeros(shape, stream.options().dtype(at::kDouble)); };
  LatentMoments m{.joint = {},
                  .joint_mean = {},
                  .first_rows = {},
                  .query = zeros({n, d, d}),
                  .output = zeros({n, d, d}),
                  .output_mean = zeros({n, d}),
                  .lags = zeros({n, t}),
                  .output_energy = 0,
                  .residual_energy = 0,
                  .window = t};
  const std::vector<HeadPart> parts = stream.head_parts();
  std::vector<at::Tensor> first_rows, residual_power;
  at::Tensor output_energy;
  for (const int64_t w : stream.fit()) {
    const Projections x = stream.project(w);
    const at::Tensor z = joint_rows(x);
    const at::Tensor later = z.slice(0, 1);
    accumulate(m.joint, gram(later));
    first_rows.push_back(z[0].clone());
    residual_power.push_back(stream.teacher(w).square().sum(1));
    accumulate(m.joint_mean, later.sum(0, /*keepdim=*/false, at::kDouble));
    at::Tensor outputs = at::empty_like(x.q);
    for (const HeadPart& part : parts) {
      const at::Tensor output = part.of_queries(outputs);
      attention.for_each_block(x, part, [&](const HeadBlock& block) {
        const int64_t end = block.weights.size(-1);
        const at::Tensor q = part.of_queries(x.q).slice(-2, block.first, end);
        part.of_queries(m.query).add_(at::matmul((q * block.weights.sum(-1, true)).transpose(-2, -1), q));
        output.slice(-2, block.first, end).copy_(block.output);
        block.weights.select(-1, 0).zero_();
        part.of_queries(m.lags).slice(-1, 0, end).add_(lag_sums(block.weights));
      });
      part.of_queries(m.output).add_(gram(output));
      part.of_queries(m.output_mean).add_(output.sum(-2, /*keepdim=*/false, at::kDouble));
    }
    accumulate(output_energy, stream.output(outputs).slice(0, 1).square().sum(at::kDouble));
  }
  const double tokens = windows * static_cast<double>(t),
               later = windows * static_cast<double>(std::max<int64_t>(t - 1, 1));
  m.joint = fp64(m.joint) / later;
  m.joint_mean = fp64(m.joint_mean) / later;
  m.first_rows = fp64(at::stack(first_rows));
  m.residual_energy = at::cat(residual_power).median().item<double>();
  for (at::Tensor* x : {&m.query, &m.output, &m.output_mean, &m.lags}) *x = fp64(*x) / tokens;
  m.output_energy = output_energy.item<double>() / later;
  return m;
}

}  // namespace cinch
