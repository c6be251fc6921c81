#include "convert/solvers/joint_pca.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "convert/solvers/linear_algebra.h"
#include "core/errors.h"

namespace cinch {
namespace {

constexpr double kCovarianceDamping = 1e-2;

/// Real covariance of a group's planes over all KV heads, real and imaginary parts pooled, (K*f, K*f).
at::Tensor pooled_covariance(const SourceHeads& heads, const at::Tensor& gram, int64_t first, int64_t count) {
  const int64_t k = heads.spec.n_kv_heads, d = heads.spec.head_dim;
  const at::Tensor plane = at::arange(first, first + count, at::kLong);
  const at::Tensor re = (at::arange(k, at::kLong).unsqueeze(1) * d + plane).flatten(), im = re + d / 2;
  return gram.index_select(0, re).index_select(1, re) + gram.index_select(0, im).index_select(1, im);
}

}  // namespace

at::Tensor activation_gram(const LatentMoments& moments) {
  const auto t = static_cast<double>(moments.window);
  const at::Tensor& first = moments.first_rows;
  return moments.joint * ((t - 1) / t) +
         at::matmul(first.transpose(0, 1), first) / (t * static_cast<double>(first.size(0)));
}

at::Tensor weight_gram(const SourceHeads& heads) {
  at::Tensor k = heads.k;
  if (heads.k_norm.defined()) k = k * heads.k_norm.unsqueeze(1);
  const at::Tensor rows = at::cat({k.flatten(0, 1), heads.v.flatten(0, 1)}, 0);
  return at::matmul(rows, rows.transpose(0, 1));
}

RotaryMaps folded_rotary_maps(const SourceHeads& heads, const at::Tensor& gram, int64_t rotary_dim, int64_t fold) {
  const int64_t planes = heads.planes.planes, k = heads.spec.n_kv_heads, n = heads.spec.n_heads;
  if (fold < 1 || planes % fold != 0 || rotary_dim < 0 || rotary_dim % (2 * planes / fold) != 0 ||
      rotary_dim > k * heads.spec.head_dim) {
    throw UsageError(fmt::format("groups of {} of {} planes cannot share a rotary key of {} numbers equally", fold,
                                 planes, rotary_dim));
  }
  const int64_t groups = planes / fold, slots = rotary_dim / 2 / groups;
  std::vector<double> inv_freq;
  std::vector<at::Tensor> key, query, rest_key, rest_query;
  for (int64_t g = 0; g < groups; ++g) {
    const Eigen eigen = eigen_descending(damped(pooled_covariance(heads, gram, g * fold, fold), kCovarianceDamping));
    const at::Tensor basis = eigen.vectors.transpose(0, 1).reshape({k * fold, k, fold});
    at::Tensor rows = at::zeros({k * fold, k, planes}, at::kComplexDouble);
    rows.slice(2, g * fold, (g + 1) * fold).copy_(basis);
    std::vector<at::Tensor> per_head;
    for (int64_t h = 0; h < n; ++h)
      per_head.push_back(component_rows(rows.slice(1, h / heads.rep(), h / heads.rep() + 1)));
    const at::Tensor keys = component_rows(rows), queries = at::stack(per_head);
    key.push_back(keys.slice(0, 0, 2 * slots));
    query.push_back(queries.slice(1, 0, 2 * slots));
    rest_key.push_back(keys.slice(0, 2 * slots));
    rest_query.push_back(queries.slice(1, 2 * slots));
    for (int64_t s = 0; s < slots; ++s) {
      const int64_t within = std::min(s * fold / slots, fold - 1);
      inv_freq.push_back(heads.planes.frequency[g * fold + within].item<double>());
    }
  }
  return {.inv_freq = at::tensor(inv_freq, at::kDouble),
          .rotary_key = at::cat(key, 0),
          .rest_key = at::cat(rest_key, 0),
          .rotary_query = at::cat(query, 1),
          .rest_query = at::cat(rest_query, 1)};
}

LatentBasis joint_pca(const SourceHeads& heads, const at::Tensor& gram, const RotaryMaps& rotary, int64_t rank,
                      bool balanced) {
  const int64_t keys = rotary.rest_key.size(0), values = heads.v.size(0) * heads.v.size(1), all = keys + values;
  if (rank < 1 || rank > all)
    throw UsageError(fmt::format("a latent of {} numbers is not possible: 1 to {} are", rank, all));
  const at::Tensor select = at::block_diag({rotary.rest_key, at::eye(values, at::kDouble)});
  const at::Tensor plain = at::matmul(at::matmul(select, gram), select.transpose(0, 1));
  // The mean over columns of their root mean squares stands for the norm of a part.
  const at::Tensor norms = plain.diagonal().clamp_min(0).sqrt();
  double alpha = 1;
  if (balanced && keys > 0) {
    const double value_norm = norms.slice(0, keys).mean().item<double>();
    if (value_norm > 0) alpha = norms.slice(0, 0, keys).mean().item<double>() / value_norm;
    if (alpha <= 0) alpha = 1;
  }
  const at::Tensor scale = at::cat({at::full({keys}, 1 / alpha, at::kDouble), at::ones({values}, at::kDouble)});
  const at::Tensor scaled = plain * scale.unsqueeze(1) * scale;
  const Eigen eigen = eigen_descending((scaled + scaled.transpose(0, 1)) / 2);
  const at::Tensor top = eigen.vectors.slice(1, 0, rank);
  const at::Tensor kept = (top.square() * eigen.values.slice(0, 0, rank)).sum(1), total = scaled.diagonal();
  const auto share = [&](int64_t first, int64_t last) {
    const double energy = total.slice(0, first, last).sum().item<double>();
    return energy > 0 ? kept.slice(0, first, last).sum().item<double>() / energy : 1.0;
  };
  return {.encode = at::matmul(top.transpose(0, 1) * scale, select),
          .decode = top / scale.unsqueeze(1),
          .kept_energy_k = share(0, keys),
          .kept_energy_v = share(keys, all)};
}

}  // namespace cinch
