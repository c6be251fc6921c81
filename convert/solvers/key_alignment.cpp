#include "convert/solvers/key_alignment.h"

#include <ATen/ATen.h>

#include <cmath>

#include "convert/solvers/linear_algebra.h"
#include "convert/solvers/procrustes.h"

namespace cinch {
namespace {

constexpr double kDamping = 1e-4;

at::Tensor stacked(const at::Tensor& key) { return key.reshape({key.size(0) * key.size(1), -1}); }

at::Tensor joined(const at::Tensor& heads) { return heads.transpose(0, 1).flatten(1, 2); }

at::Tensor quadratic(const at::Tensor& a, const at::Tensor& m) {
  return at::matmul(at::matmul(a, m), a.transpose(-2, -1));
}

/// Puts the best real subspace of the unrotated dims into the maps; returns {kept, total} energy.
std::pair<double, double> subspace_of_unrotated(const at::Tensor& free, const at::Tensor& key, at::Tensor& encoder,
                                                at::Tensor& decoder) {
  const int64_t g = key.size(0), n = free.size(0);
  const at::Tensor moment = key.index_select(1, free).index_select(3, free);
  const Eigen eigen = eigen_descending(moment.reshape({g * n, g * n}));
  const at::Tensor basis = eigen.vectors.slice(1, 0, n).reshape({g, n, n});
  const double kept = eigen.values.slice(0, 0, n).sum().item<double>(), total = eigen.values.sum().item<double>();
  const double scale = kept > 0 ? std::sqrt(total / static_cast<double>(g) / kept) : 1.0;
  const at::Tensor all = at::arange(g, at::kLong).reshape({-1, 1, 1});
  const c10::List<std::optional<at::Tensor>> places({all, free.reshape({1, -1, 1}), free.reshape({1, 1, -1})});
  encoder.index_put_(places, basis.transpose(1, 2) * scale);
  decoder.index_put_(places, basis / scale);
  return {kept, total};
}

}  // namespace

KeyMaps rank_one_keys(const HeadPlanes& planes, const KeyProblem& problem) {
  const int64_t g = problem.key.size(0);
  const at::Tensor moments = plane_moments(problem.key);  // (P, g, g)
  const Eigen eigen = eigen_descending(moments);
  // An eigenvector's phase is arbitrary: it is chosen so that the shared key stays as close as it can to the average,
  // which matters where the coordinates of keys are not free (QK-norm).
  const at::Tensor any_phase = eigen.vectors.select(2, 0);  // (P, g)
  const at::Tensor sum = any_phase.sum(1, /*keepdim=*/true), size = sum.abs();
  const at::Tensor phase = at::where(size > 1e-9, sum / size.clamp_min(1e-300), at::ones_like(sum));
  const at::Tensor top = any_phase * phase.conj();
  const at::Tensor power = eigen.values.select(1, 0), total = eigen.values.sum(1);
  const at::Tensor usable = power > 0;
  const at::Tensor scale =
      at::where(usable, total / static_cast<double>(g) / at::where(usable, power, at::ones_like(power)),
                at::ones_like(power))
          .sqrt();
  at::Tensor encoder = plane_map((top.conj() * scale.unsqueeze(1)).transpose(0, 1).resolve_conj());
  at::Tensor decoder = plane_map((top / scale.unsqueeze(1)).transpose(0, 1));
  double kept = power.slice(0, 0, planes.rotated).sum().item<double>();
  double all = total.slice(0, 0, planes.rotated).sum().item<double>();
  const at::Tensor free = unrotated_dims(planes);
  if (free.numel() > 0) {
    const auto [free_kept, free_total] = subspace_of_unrotated(free, problem.key, encoder, decoder);
    kept += free_kept;
    all += free_total;
  }
  return {.key = joined(encoder), .decoder = decoder, .kept = all > 0 ? kept / all : 1.0};
}

double logit_loss(const KeyMaps& maps, const KeyProblem& problem, const LagFactors& lags) {
  const at::Tensor own = problem.key.diagonal(0, 0, 2).permute({2, 0, 1});
  const at::Tensor cross = at::matmul(problem.key.flatten(2, 3), maps.key.transpose(0, 1));  // (g, D, D)
  const at::Tensor shared = rotation_average(quadratic(maps.key, stacked(problem.key)), lags);
  const at::Tensor error = rotation_average(own, lags) -
                           2 * at::matmul(rotation_average(cross, lags), maps.decoder.transpose(1, 2)) +
                           quadratic(maps.decoder, shared);
  return (problem.query * error.transpose(1, 2)).sum().item<double>();
}

KeyMaps alternate_keys(KeyMaps maps, const KeyProblem& problem, const LagFactors& lags, int iterations) {
  const int64_t g = problem.key.size(0);
  const at::Tensor all = stacked(problem.key);
  const double power = batch_trace(all).item<double>() / static_cast<double>(g);
  const auto refit_decoder = [&] {
    const at::Tensor cross = rotation_average(at::matmul(problem.key.flatten(2, 3), maps.key.transpose(0, 1)), lags);
    const at::Tensor shared = rotation_average(quadratic(maps.key, all), lags);
    const at::Tensor residual = cross - at::matmul(maps.decoder, shared);
    maps.decoder = maps.decoder +
                   solve_symmetric(damped(shared, kDamping).unsqueeze(0).expand_as(residual), residual.transpose(1, 2))
                       .transpose(1, 2);
  };
  for (int i = 0; i < iterations; ++i) {
    refit_decoder();
    const at::Tensor weighted = at::matmul(maps.decoder.transpose(1, 2), problem.query);  // (g, D, D)
    const at::Tensor normal = rotation_average_transposed(at::matmul(weighted, maps.decoder).sum(0), lags);
    const at::Tensor goal = rotation_average_transposed(weighted, lags);
    const at::Tensor residual = joined(goal) - at::matmul(normal, maps.key);
    maps.key = maps.key + solve_symmetric(damped(normal, kDamping), residual);
    const double now = batch_trace(quadratic(maps.key, all)).item<double>();
    if (now > 0) {
      const double scale = std::sqrt(power / now);
      maps.key = maps.key * scale;
      maps.decoder = maps.decoder / scale;
    }
  }
  refit_decoder();
  return maps;
}

}  // namespace cinch
