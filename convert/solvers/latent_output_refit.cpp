#include "convert/solvers/latent_output_refit.h"

#include <ATen/ATen.h>

#include "convert/solvers/output_normal.h"

namespace cinch {
namespace {

at::Tensor original_output(const LayerProblem& problem, const GroupedQueryAttention& attention, int64_t window) {
  return attention.forward(problem.attention_input(problem.teacher[window]).unsqueeze(0), 0, 0, nullptr).squeeze(0);
}

}  // namespace

LatentOutputRefit refit_latent_output(const LayerProblem& problem, const HeadStream& stream, const SourceHeads& heads,
                                      const LatentOutputOptions& options, LatentMaps& maps) {
  const GroupedQueryAttention original(problem.source, problem.weights);
  const LatentForward converted(stream, heads, maps);
  const ResidualPath path = residual_path(problem);
  const at::Tensor gain = path.gain.to(stream.options());
  const auto add_window = [&](int64_t w, OutputSums& sums) {
    const at::Tensor h = problem.teacher[w], student = problem.student[w];
    at::Tensor goal = original_output(problem, original, w), weights;
    if (options.follow_drift) {
      const at::Tensor factor = residual_factor(problem, path, goal);
      weights = token_weights(h + problem.attention_residual(goal), factor);
      goal = goal + (h - student) / (factor.unsqueeze(1) * gain);
    }
    at::Tensor features = converted.head_outputs(stream.input(student));
    const at::Tensor error = goal - converted.output(features);
    if (options.bias) features = at::cat({features, at::ones({features.size(0), 1}, features.options())}, 1);
    sums.add(features, error, goal, weights);
  };
  OutputSums fit, validation;
  for (const int64_t w : problem.windows.fit) add_window(w, fit);
  for (const int64_t w : problem.windows.validation) add_window(w, validation);
  const OutputChange change =
      best_change(fit.normal(), validation.normal(), options.lambdas, {.blocks = 1, .bias = options.bias});
  if (change.lambda == 0) return {change.lambda, change.loss};
  const int64_t n = heads.o.size(0), d = heads.o.size(2);
  maps.o = maps.o + change.rows.slice(0, 0, n * d).reshape({n, d, -1}).transpose(1, 2);
  if (options.bias) maps.o_bias = maps.o_bias.defined() ? maps.o_bias + change.rows[n * d] : change.rows[n * d];
  return {change.lambda, change.loss};
}

double latent_output_error(const LayerProblem& problem, const HeadStream& stream, const SourceHeads& heads,
                           const LatentMaps& maps, const std::vector<int64_t>& windows) {
  const GroupedQueryAttention original(problem.source, problem.weights);
  const LatentForward converted(stream, heads, maps);
  double error = 0, power = 0;
  for (const int64_t w : windows) {
    const at::Tensor y = original_output(problem, original, w).slice(0, 1);
    const at::Tensor other = converted.output(converted.head_outputs(stream.input(problem.teacher[w]))).slice(0, 1);
    error += (other - y).square().sum().item<double>();
    power += y.square().sum().item<double>();
  }
  return power > 0 ? error / power : 0.0;
}

}  // namespace cinch
