#include "convert/solvers/value_merge.h"

#include <ATen/ATen.h>

#include <vector>

#include "convert/solvers/conjugate_gradient.h"
#include "convert/solvers/linear_algebra.h"

namespace cinch {
namespace {

/// Above this many features (H * g * D) the joint Gram matrix would be out of proportion, and only its diagonal blocks
/// are kept.
constexpr int64_t kMostFeatures = 6144;

/// (G, D, g, D) maps -> one map per query head (H, D, gD).
at::Tensor per_query_head(const at::Tensor& value, int64_t n_heads) {
  return value.flatten(2, 3).repeat_interleave(n_heads / value.size(0), 0);
}

/// o (H, E, D) -> (E, H*D)
at::Tensor joined(const at::Tensor& o) { return o.transpose(0, 1).flatten(1, 2); }

/// maps[h] gram[h, :, h', :] for all pairs: (H, D, H, gD).
at::Tensor mapped_rows(const at::Tensor& maps, const at::Tensor& gram) {
  return at::bmm(maps, gram.flatten(2, 3)).reshape({maps.size(0), maps.size(1), gram.size(2), gram.size(3)});
}

/// Gram matrix (HD, HD) and cross moments (E, HD) of the shared head outputs.
struct OutputNormal {
  at::Tensor gram, cross;
};
OutputNormal output_normal(const ValueMoments& moments, const at::Tensor& maps) {
  const int64_t h = maps.size(0), d = maps.size(1);
  const at::Tensor rows = mapped_rows(maps, moments.gram);                                          // (H, D, H, gD)
  const at::Tensor gram = at::bmm(rows.permute({2, 0, 1, 3}).flatten(1, 2), maps.transpose(1, 2));  // (H', H*D, D)
  return {gram.permute({1, 0, 2}).reshape({h * d, h * d}), joined(at::bmm(moments.cross, maps.transpose(1, 2)))};
}

void refit_output(const ValueMoments& moments, double ridge, MergedHeads& merged) {
  const int64_t h = merged.o.size(0), d = merged.o.size(2);
  const OutputNormal normal = output_normal(moments, per_query_head(merged.value, h));
  const at::Tensor o = joined(merged.o);
  const at::Tensor residual = normal.cross - at::matmul(o, normal.gram);
  const at::Tensor change = solve_symmetric(damped(normal.gram, ridge), residual.transpose(0, 1)).transpose(0, 1);
  merged.o = (o + change).reshape({-1, h, d}).transpose(0, 1).contiguous();
}

void refit_values(const ValueMoments& moments, const ValueRefitOptions& options, MergedHeads& merged) {
  constexpr double kPreconditionerDamping = 1e-3;
  const int64_t h = merged.o.size(0), d = merged.o.size(2), groups = merged.value.size(0), per_group = h / groups;
  const at::Tensor o = joined(merged.o);
  const at::Tensor metric = at::matmul(o.transpose(0, 1), o).reshape({h, d, h * d});  // W_h^T W
  // Sum over the heads of each group of W_h^T W (maps z z^T)_h: the Hessian times the value maps.
  const auto apply = [&](const at::Tensor& value) {
    const at::Tensor image =
        mapped_rows(per_query_head(value.unsqueeze(2), h), moments.gram).flatten(0, 1);  // (H*D, H, gD)
    return at::bmm(metric, image.transpose(0, 1)).reshape({groups, per_group, d, -1}).sum(1);
  };
  const auto group_sum = [&](const at::Tensor& per_head) {
    return per_head.reshape({groups, per_group, per_head.size(1), per_head.size(2)}).sum(1);
  };
  const at::Tensor goal = group_sum(at::bmm(merged.o.transpose(1, 2), moments.cross));
  const at::Tensor current = merged.value.flatten(2, 3);
  const at::Tensor rows = damped(
      group_sum(at::bmm(merged.o.transpose(1, 2), merged.o)) / static_cast<double>(per_group), kPreconditionerDamping);
  const at::Tensor columns =
      damped(group_sum(moments.gram.diagonal(0, 0, 2).permute({2, 0, 1})), kPreconditionerDamping);
  const at::Tensor step = conjugate_gradient(
      [&](const at::Tensor& x) { return apply(x) + options.value_damping * at::bmm(rows, at::bmm(x, columns)); },
      [&](const at::Tensor& x) {
        return solve_symmetric(columns, solve_symmetric(rows, x).transpose(1, 2)).transpose(1, 2);
      },
      goal - apply(current), options.steps);
  merged.value = (current + step).reshape_as(merged.value);
}

}  // namespace

ValueMoments value_moments(const LayerProblem& problem, const HeadStream& stream, const ResidualPath& path,
                           const MergedHeads& merged) {
  const int64_t groups = merged.key.size(0), d = merged.key.size(1), g = merged.key.size(2), h = merged.query.size(0);
  const int64_t width = g * d, t = stream.tokens();
  const bool full = h * width <= kMostFeatures;
  const at::Tensor key = merged.key.flatten(2, 3).to(stream.options()), query = merged.query.to(stream.options());
  const at::Tensor inverse_gain = path.gain.reciprocal().to(stream.options());
  ValueMoments result;
  at::Tensor gram, cross, power;
  const auto side_by_side = [&](const at::Tensor& x) {
    return x.reshape({groups, g, t, d}).transpose(1, 2).reshape({groups, t, width});
  };
  for (const int64_t w : stream.fit()) {
    const Projections x = stream.project(w);
    const at::Tensor source =
        at::matmul(stream.probabilities(x.q, x.k).reshape({x.v.size(0), -1, t}), x.v).reshape({h, t, d});
    const at::Tensor y = stream.output(source);
    const at::Tensor weight =
        token_weights(problem.teacher[w], residual_factor(problem, path, y * inverse_gain)).sqrt();
    const at::Tensor shared_keys = at::bmm(side_by_side(x.k), key.transpose(1, 2));
    const at::Tensor p = stream.probabilities(at::bmm(x.q, query.transpose(1, 2)), shared_keys);
    at::Tensor z =
        at::bmm(p.reshape({groups, -1, t}), side_by_side(x.v)).reshape({h, t, width}) * weight.reshape({1, t, 1});
    const at::Tensor goal = y * weight.unsqueeze(1);
    accumulate(power, goal.square().sum());
    if (full) {
      z = z.transpose(0, 1).reshape({t, h * width});
      accumulate(gram, at::matmul(z.transpose(0, 1), z));
      accumulate(cross, at::matmul(goal.transpose(0, 1), z));
    } else {
      accumulate(gram, at::bmm(z.transpose(1, 2), z));
    }
  }
  result.power = power.item<double>();
  result.gram = full ? fp64(gram).reshape({h, width, h, width}) : fp64(gram);
  if (full) result.cross = fp64(cross).reshape({-1, h, width}).transpose(0, 1).contiguous();
  return result;
}

double start_values(const ValueMoments& moments, const at::Tensor& o, MergedHeads& merged) {
  const int64_t groups = merged.key.size(0), d = merged.key.size(1), g = merged.key.size(2), h = merged.query.size(0);
  const int64_t per_group = h / groups, width = g * d;
  const at::Tensor blocks = moments.full() ? moments.gram.diagonal(0, 0, 2).permute({2, 0, 1}) : moments.gram;
  const Eigen eigen = eigen_descending(blocks.reshape({groups, per_group, width, width}).sum(1));
  const at::Tensor basis = eigen.vectors.slice(2, 0, d);  // (G, gD, D)
  merged.value = basis.transpose(1, 2).reshape({groups, d, g, d}).contiguous();
  const at::Tensor decoder = basis.reshape({groups * g, d, d}).repeat_interleave(per_group / g, 0);
  merged.o = at::bmm(o, decoder);
  const double total = eigen.values.sum().item<double>();
  return total > 0 ? eigen.values.slice(1, 0, d).sum().item<double>() / total : 1.0;
}

double value_loss(const ValueMoments& moments, const MergedHeads& merged) {
  const OutputNormal normal = output_normal(moments, per_query_head(merged.value, merged.o.size(0)));
  const at::Tensor o = joined(merged.o);
  const double loss = moments.power - 2 * (o * normal.cross).sum().item<double>() +
                      (at::matmul(o, normal.gram) * o).sum().item<double>();
  return loss / moments.power;
}

void alternate_values(const ValueMoments& moments, const ValueRefitOptions& options, MergedHeads& merged) {
  for (int round = 0; round < options.rounds; ++round) {
    refit_output(moments, options.output_ridge, merged);
    refit_values(moments, options, merged);
  }
}

}  // namespace cinch
