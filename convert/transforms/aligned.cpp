// The closed-form conversion to fewer KV heads: keys by alternating least squares over lags, then refitted with the
// queries in the metric of the softmax; values in the metric of W_O, alternated with it. docs/conversion.md derives the
// steps.
#include <ATen/ATen.h>

#include <algorithm>

#include "convert/solvers/fisher.h"
#include "convert/solvers/gauge.h"
#include "convert/solvers/head_groups.h"
#include "convert/solvers/key_alignment.h"
#include "convert/solvers/output_refit.h"
#include "convert/solvers/value_merge.h"
#include "convert/transforms/grouped_transform.h"

namespace cinch {
namespace {

constexpr int kAlsIterations = 30;
constexpr int64_t kLagWindows = 4;  // windows that the attention mass per lag is measured on
// Few query positions overfit: 256 in all gain nothing over the keys' moments, 8000 and more a quarter of the loss.
constexpr int64_t kFisherWindows = 64;
constexpr int64_t kFisherPositions = 128;  // query positions per window
constexpr int kFisherSteps = 8;
constexpr double kFisherDamping = 1e-2;
constexpr int kRandomStarts = 5;

/// One layer's conversion with a fixed order of heads.
class AlignedSolver {
 public:
  AlignedSolver(const LayerProblem& problem, const ConversionRecipe& recipe, const SourceHeads& source)
      : problem_(problem),
        recipe_(recipe),
        path_(residual_path(problem)),
        natural_(head_moments(HeadStream(problem, source))),
        moments_(natural_),
        heads_(source),
        stream_(canonical()) {}

  const HeadMoments& moments() const { return moments_; }
  const SourceHeads& heads() const { return heads_; }

  /// Steps 2 and 3: keys and queries from second moments.
  void align_keys() {
    const int64_t groups = problem_.target.n_kv_heads, d = problem_.source.head_dim;
    const int64_t g = problem_.source.n_kv_heads / groups, rep = heads_.rep();
    const int64_t context = recipe_.lag_context > 0 ? recipe_.lag_context : 8 * stream_.tokens();
    const LagFactors lags = lag_factors(heads_.planes, lag_weights(measured_lags(stream_, kLagWindows),
                                                                   recipe_.lag_tail, context, problem_.source.window));
    const at::Tensor query = moments_.query.reshape({-1, rep, d, d}).sum(1);
    std::vector<at::Tensor> keys, queries;
    double kept = 0;
    for (int64_t j = 0; j < groups; ++j) {
      const int64_t from = j * g, to = from + g;
      const KeyProblem own{.key = moments_.key.slice(0, from, to).slice(2, from, to),
                           .query = query.slice(0, from, to)};
      const KeyMaps start = rank_one_keys(heads_.planes, own);
      const KeyMaps maps = g > 1 ? alternate_keys(start, own, lags, kAlsIterations) : start;
      const KeyMaps& best = logit_loss(maps, own, lags) < logit_loss(start, own, lags) ? maps : start;
      keys.push_back(best.key.reshape({d, g, d}));
      queries.push_back(best.decoder.transpose(1, 2).repeat_interleave(rep, 0));
      kept += start.kept / static_cast<double>(groups);
    }
    merged_.key = at::stack(keys);
    merged_.query = at::cat(queries).contiguous();
    kept_key_ = kept;
  }

  /// Steps 4 and 5.
  void refit_in_softmax_metric() {
    const FisherSample sample = fisher_sample(stream_, heads_, kFisherWindows, kFisherPositions);
    refit_queries(sample, merged_, kFisherSteps, kFisherDamping);
    for (int64_t round = 0; round < recipe_.fisher_rounds; ++round) {
      refit_keys(sample, moments_.key, merged_, kFisherSteps, kFisherDamping);
      refit_queries(sample, merged_, kFisherSteps, kFisherDamping);
    }
  }

  /// Step 6.
  void merge_values(bool alternate) {
    const ValueMoments values = value_moments(problem_, stream_, path_, merged_);
    kept_value_ = start_values(values, heads_.o, merged_);
    if (alternate && values.full()) alternate_values(values, {}, merged_);
  }

  void write(LayerSolution& solution) const {
    MergedHeads natural = merged_;
    to_natural_scale(natural, natural_, moments_, path_, problem_.source.qk_norm);
    solution.weights = merged_weights(problem_, heads_, natural);
    solution.head_order = heads_.head_order();
    solution.kept_energy_k = kept_key_;
    solution.kept_energy_v = kept_value_;
  }

 private:
  HeadStream canonical() {
    to_canonical(heads_, moments_, path_);
    return HeadStream(problem_, heads_);
  }

  const LayerProblem& problem_;
  const ConversionRecipe& recipe_;
  ResidualPath path_;
  HeadMoments natural_;  // in the source's own basis
  HeadMoments moments_;  // in the canonical basis
  SourceHeads heads_;
  HeadStream stream_;
  MergedHeads merged_;
  double kept_key_ = 1.0, kept_value_ = 1.0;
};

/// Error of the cheap part of the conversion (keys from moments, values from their subspace) with this order of heads.
double quick_error(const LayerProblem& problem, const ConversionRecipe& recipe, const SourceHeads& heads) {
  AlignedSolver solver(problem, recipe, heads);
  solver.align_keys();
  solver.merge_values(/*alternate=*/false);
  LayerSolution solution;
  solver.write(solution);
  return attention_output_error(problem, solution.grouped_query(), problem.windows.judged());
}

/// The source's heads, reordered where a search finds groups that lose less on the calibration windows.
SourceHeads grouped_heads(const LayerProblem& problem, const ConversionRecipe& recipe) {
  const SourceHeads adjacent = source_heads(problem);
  const int64_t groups = problem.target.n_kv_heads, k = problem.source.n_kv_heads;
  if (!recipe.search_groups || groups == 1 || groups == k) return adjacent;
  const AlignedSolver solver(problem, recipe, adjacent);
  const std::vector<int64_t> order = search_groups(adjacent.planes, solver.moments(), groups, kRandomStarts,
                                                   recipe.seed + static_cast<uint64_t>(problem.layer));
  if (order == adjacent.kv_order) return adjacent;
  const SourceHeads searched = reordered(adjacent, order);
  return quick_error(problem, recipe, searched) < quick_error(problem, recipe, adjacent) ? searched : adjacent;
}

class AlignedTransform : public GroupedTransform {
 public:
  std::string name() const override { return "aligned"; }
  std::string summary() const override {
    return "fit shared heads by least squares where the softmax and W_O look, then refit W_O (default)";
  }
  double solve_flops(const AttentionSpec& source, const ConversionRecipe& recipe) const override {
    const auto tokens = static_cast<double>(recipe.calibration_tokens),
               length = static_cast<double>(recipe.calibration_window);
    const auto heads = static_cast<double>(source.n_heads), d = static_cast<double>(source.head_dim);
    const double windows = std::min(tokens / length, static_cast<double>(kFisherWindows));
    const double positions = std::min(length, static_cast<double>(kFisherPositions));
    const auto rounds = static_cast<double>(recipe.fisher_rounds);
    const double softmax = (1 + 2 * rounds) * (kFisherSteps + 1) * 4 * windows * positions * length * heads * d;
    const double stacked = heads * d * static_cast<double>(source.n_kv_heads / std::max<int64_t>(recipe.n_kv_heads, 1));
    return softmax + 2 * tokens * stacked * stacked;
  }

 protected:
  bool refits_by_default() const override { return true; }
  bool merges_by_calibration() const override { return true; }
  std::string qk_norm_caution() const override { return ""; }

  void merge(const LayerProblem& problem, const ConversionRecipe& recipe, LayerSolution& solution) const override {
    AlignedSolver solver(problem, recipe, grouped_heads(problem, recipe));
    solver.align_keys();
    solver.refit_in_softmax_metric();
    solver.merge_values(/*alternate=*/true);
    solver.write(solution);
  }
};

}  // namespace

const Transform& aligned_transform() {
  static const AlignedTransform transform;
  return transform;
}

}  // namespace cinch
