#include "convert/solvers/output_normal.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "convert/solvers/linear_algebra.h"

namespace cinch {

void OutputSums::add(const at::Tensor& features, const at::Tensor& error, const at::Tensor& goal,
                     const at::Tensor& weights) {
  const auto power = [&](const at::Tensor& x) {
    const at::Tensor per_token = x.square().sum(1);
    return (weights.defined() ? per_token * weights : per_token).sum();
  };
  const at::Tensor weighted = (weights.defined() ? features * weights.unsqueeze(1) : features).transpose(0, 1);
  accumulate(gram_, at::matmul(weighted, features));
  accumulate(cross_, at::matmul(weighted, error));
  accumulate(residual_, power(error));
  accumulate(target_, power(goal));
}

OutputNormal OutputSums::normal() const {
  if (!gram_.defined()) return {};
  return {.gram = fp64(gram_),
          .cross = fp64(cross_),
          .residual = residual_.item<double>(),
          .target = target_.item<double>()};
}

void OutputNormal::add(const OutputNormal& other) {
  gram.add_(other.gram);
  cross.add_(other.cross);
}

double OutputNormal::loss(const at::Tensor& change) const {
  return residual - 2 * (cross * change).sum().item<double>() +
         (at::matmul(gram, change) * change).sum().item<double>();
}

at::Tensor ridge_change(const OutputNormal& normal, double lambda, const OutputPenalty& penalty) {
  const int64_t n = normal.gram.size(0), features = n - (penalty.bias ? 1 : 0);
  at::Tensor diagonal = at::zeros({n}, at::kDouble);
  const at::Tensor power = normal.gram.diagonal().slice(0, 0, features).reshape({penalty.blocks, -1}).mean(1);
  const double least = std::max(power.max().item<double>() * 1e-12, 1e-300);
  diagonal.slice(0, 0, features).copy_((lambda * power.clamp_min(least)).repeat_interleave(features / penalty.blocks));
  return solve_symmetric(normal.gram + at::diag(diagonal), normal.cross);
}

OutputChange best_change(OutputNormal fit, const OutputNormal& validation, const std::vector<double>& lambdas,
                         const OutputPenalty& penalty) {
  const OutputNormal& judge = validation.empty() ? fit : validation;
  OutputChange best{.rows = {}, .lambda = 0, .loss = judge.residual};
  for (const double lambda : lambdas) {
    const double loss = judge.loss(ridge_change(fit, lambda, penalty));
    if (loss < best.loss) {
      best.loss = loss;
      best.lambda = lambda;
    }
  }
  best.loss /= std::max(judge.target, 1e-300);
  if (best.lambda == 0) return best;
  if (!validation.empty()) fit.add(validation);
  best.rows = ridge_change(fit, best.lambda, penalty);
  return best;
}

}  // namespace cinch
