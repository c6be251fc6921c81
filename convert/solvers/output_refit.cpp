#include "convert/solvers/output_refit.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "convert/solvers/linear_algebra.h"
#include "convert/solvers/source_heads.h"

namespace cinch {
namespace {

/// Normal equations of the change dW: features (n, n), features times residual (n, E), squared residual, squared
/// target.
struct Normal {
  at::Tensor gram, cross;
  double residual = 0, target = 0;

  void add(const at::Tensor& features, const at::Tensor& error, const at::Tensor& goal, const at::Tensor& weights) {
    const at::Tensor weighted = (features * weights.unsqueeze(1)).transpose(0, 1);
    const at::Tensor g = at::matmul(weighted, features).to(at::kCPU, at::kDouble);
    const at::Tensor c = at::matmul(weighted, error).to(at::kCPU, at::kDouble);
    gram = gram.defined() ? gram.add_(g) : g;
    cross = cross.defined() ? cross.add_(c) : c;
    residual += (error.square().sum(1) * weights).sum().item<double>();
    target += (goal.square().sum(1) * weights).sum().item<double>();
  }
  void add(const Normal& other) {
    gram.add_(other.gram);
    cross.add_(other.cross);
  }
  /// Loss after the change (n, E).
  double loss(const at::Tensor& change) const {
    return residual - 2 * (cross * change).sum().item<double>() +
           (at::matmul(gram, change) * change).sum().item<double>();
  }
};

/// The change (n, E) for one lambda. Features are shrunk in proportion to the mean power of those that share their KV
/// head, so that the scale of its values, which is free, does not matter; the bias row, the last where there is one, is
/// not shrunk.
at::Tensor solve(const Normal& normal, double lambda, int64_t kv_heads, bool bias) {
  const int64_t n = normal.gram.size(0), features = n - (bias ? 1 : 0);
  at::Tensor penalty = at::zeros({n}, at::kDouble);
  const at::Tensor power = normal.gram.diagonal().slice(0, 0, features).reshape({kv_heads, -1}).mean(1);
  const double least = std::max(power.max().item<double>() * 1e-12, 1e-300);
  penalty.slice(0, 0, features).copy_((lambda * power.clamp_min(least)).repeat_interleave(features / kv_heads));
  return solve_symmetric(normal.gram + at::diag(penalty), normal.cross);
}

}  // namespace

OutputRefit refit_output(const LayerProblem& problem, const GroupedQueryWeights& merged,
                         const std::vector<double>& lambdas) {
  const GroupedQueryAttention original(problem.source, problem.weights), converted(problem.target, merged);
  const ResidualPath path = residual_path(problem);
  const at::Tensor gain = path.gain.to(problem.teacher.options());
  const bool bias = merged.o_bias.defined();
  const int64_t kv_heads = problem.target.n_kv_heads;
  const auto add_window = [&](int64_t w, Normal& normal) {
    const at::Tensor h = problem.teacher[w], student = problem.student[w];
    const at::Tensor y = original.forward(problem.attention_input(h).unsqueeze(0), 0, 0, nullptr).squeeze(0);
    const at::Tensor factor = residual_factor(problem, path, y);
    const at::Tensor goal = y + (h - student) / (factor.unsqueeze(1) * gain);
    at::Tensor features =
        converted.head_outputs(problem.attention_input(student).unsqueeze(0), 0, 0, nullptr).squeeze(0);
    const at::Tensor error = goal - converted.output(features);
    if (bias) features = at::cat({features, at::ones({features.size(0), 1}, features.options())}, 1);
    normal.add(features, error, goal, token_weights(h, factor));
  };
  Normal fit, validation;
  for (const int64_t w : problem.windows.fit) add_window(w, fit);
  for (const int64_t w : problem.windows.validation) add_window(w, validation);
  const Normal& judge = validation.gram.defined() ? validation : fit;
  OutputRefit best{.o_proj = merged.o_proj, .o_bias = merged.o_bias, .lambda = 0, .loss = judge.residual};
  for (const double lambda : lambdas) {
    const double loss = judge.loss(solve(fit, lambda, kv_heads, bias));
    if (loss < best.loss) {
      best.loss = loss;
      best.lambda = lambda;
    }
  }
  best.loss /= std::max(judge.target, 1e-300);
  if (best.lambda == 0) return best;
  if (validation.gram.defined()) fit.add(validation);
  const at::Tensor rows = solve(fit, best.lambda, kv_heads, bias).to(merged.o_proj.options());
  best.o_proj = merged.o_proj + rows.slice(0, 0, merged.o_proj.size(1)).transpose(0, 1);
  if (bias) best.o_bias = merged.o_bias + rows[merged.o_proj.size(1)];
  return best;
}

double attention_output_error(const LayerProblem& problem, const GroupedQueryWeights& merged,
                              const std::vector<int64_t>& windows) {
  const GroupedQueryAttention original(problem.source, problem.weights), converted(problem.target, merged);
  double error = 0, power = 0;
  for (const int64_t w : windows) {
    const at::Tensor x = problem.attention_input(problem.teacher[w]).unsqueeze(0);
    const at::Tensor y = original.forward(x, 0, 0, nullptr);
    error += (converted.forward(x, 0, 0, nullptr) - y).square().sum().item<double>();
    power += y.square().sum().item<double>();
  }
  return power > 0 ? std::sqrt(error / power) : 0.0;
}

}  // namespace cinch
