#include "convert/transforms/grouped_transform.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "convert/solvers/output_refit.h"
#include "core/errors.h"

namespace cinch {
namespace {

std::vector<int64_t> divisors(int64_t n) {
  std::vector<int64_t> result;
  for (int64_t i = 1; i <= n; ++i) {
    if (n % i == 0) result.push_back(i);
  }
  return result;
}

}  // namespace

AttentionSpec GroupedTransform::target(const AttentionSpec& source, const ConversionRecipe& recipe) const {
  const int64_t k = source.n_kv_heads, n = recipe.n_kv_heads;
  if (n < 1 || n > k || k % n != 0) {
    throw UsageError(
        fmt::format("cannot merge {} KV heads into {}: the number of target heads must divide that of the source", k,
                    n),
        fmt::format("choose one of {}", fmt::join(divisors(k), ", ")));
  }
  AttentionSpec result = source;
  result.n_kv_heads = n;
  return result;
}

std::vector<std::string> GroupedTransform::cautions(const AttentionSpec& source, const ConversionRecipe&) const {
  if (!source.qk_norm || qk_norm_caution().empty()) return {};
  return {qk_norm_caution()};
}

bool GroupedTransform::refits(const ConversionRecipe& recipe) const {
  return recipe.refit == RefitMode::on || (recipe.refit == RefitMode::automatic && refits_by_default());
}

bool GroupedTransform::needs_calibration(const ConversionRecipe& recipe) const {
  return merges_by_calibration() || refits(recipe);
}

LayerSolution GroupedTransform::solve(const LayerProblem& problem, const ConversionRecipe& recipe) const {
  const at::NoGradGuard no_grad;
  LayerSolution solution;
  solution.head_order.resize(problem.source.n_heads);
  std::iota(solution.head_order.begin(), solution.head_order.end(), int64_t{0});
  solution.warnings = cautions(problem.source, recipe);
  merge(problem, recipe, solution);
  if (!problem.teacher.defined()) return solution;
  solution.output_error_before_refit = solution.output_error =
      attention_output_error(problem, solution.grouped_query(), problem.windows.measured());
  if (refits(recipe)) {
    const OutputRefit refit = refit_output(problem, solution.grouped_query(), recipe.refit_lambdas);
    solution.grouped_query().o_proj = refit.o_proj;
    solution.grouped_query().o_bias = refit.o_bias;
    solution.refit_lambda = refit.lambda;
    solution.output_error = attention_output_error(problem, solution.grouped_query(), problem.windows.measured());
  }
  return solution;
}

int64_t GroupedTransform::solve_bytes(const AttentionSpec& source, const AttentionSpec&,
                                      const ConversionRecipe& recipe) const {
  const int64_t width = std::max(source.n_heads * source.head_dim, source.kv_elements());
  const int64_t heads = recipe.calibration_tokens * (2 * width + 4 * source.n_kv_heads * source.head_dim) * 4;
  return heads + 6 * width * width * 8;
}

}  // namespace cinch
