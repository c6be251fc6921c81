#include "convert/solvers/output_refit.h"

#include <ATen/ATen.h>

#include <cmath>

#include "convert/solvers/output_normal.h"
#include "convert/solvers/source_heads.h"

namespace cinch {
OutputRefit refit_output(const LayerProblem& problem, const GroupedQueryWeights& merged,
                         const std::vector<double>& lambdas) {
  const GroupedQueryAttention original(problem.source, problem.weights), converted(problem.target, merged);
  const ResidualPath path = residual_path(problem);
  const at::Tensor gain = path.gain.to(problem.teacher.options());
  const bool bias = merged.o_bias.defined();
  const int64_t kv_heads = problem.target.n_kv_heads;
  const auto add_window = [&](int64_t w, OutputSums& sums) {
    const at::Tensor h = problem.teacher[w], student = problem.student[w];
    const at::Tensor y = original.forward(problem.attention_input(h).unsqueeze(0), 0, 0, nullptr).squeeze(0);
    const at::Tensor factor = residual_factor(problem, path, y);
    const at::Tensor goal = y + (h - student) / (factor.unsqueeze(1) * gain);
    at::Tensor features =
        converted.head_outputs(problem.attention_input(student).unsqueeze(0), 0, 0, nullptr).squeeze(0);
    const at::Tensor error = goal - converted.output(features);
    if (bias) features = at::cat({features, at::ones({features.size(0), 1}, features.options())}, 1);
    sums.add(features, error, goal, token_weights(h, factor));
  };
  OutputSums fit, validation;
  for (const int64_t w : problem.windows.fit) add_window(w, fit);
  for (const int64_t w : problem.windows.validation) add_window(w, validation);
  const OutputChange change =
      best_change(fit.normal(), validation.normal(), lambdas, {.blocks = kv_heads, .bias = bias});
  OutputRefit result{.o_proj = merged.o_proj, .o_bias = merged.o_bias, .lambda = change.lambda, .loss = change.loss};
  if (change.lambda == 0) return result;
  const at::Tensor rows = change.rows.to(merged.o_proj.options());
  result.o_proj = merged.o_proj + rows.slice(0, 0, merged.o_proj.size(1)).transpose(0, 1);
  if (bias) result.o_bias = merged.o_bias + rows[merged.o_proj.size(1)];
  return result;
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
