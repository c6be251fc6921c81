#include "convert/budget_sweep.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "attention/cache_precision.h"
#include "convert/converter.h"
#include "convert/layer_problems.h"
#include "convert/provenance.h"
#include "convert/solvers/latent_prediction.h"
#include "convert/transforms/latent_sizes.h"
#include "convert/transforms/latent_transform.h"
#include "core/errors.h"
#include "core/progress.h"

namespace cinch {
namespace {

/// Everything that one row needs of the layers: predictions at its rotary width.
class Sweep {
 public:
  Sweep(const ModelSource& source, const ConversionPlan& plan, const MomentFile& moments)
      : source_(source), plan_(plan), moments_(moments) {}

  /// Predicted errors of `rows`, filled in.
  void predict(std::vector<SweepRow>& rows) {
    std::set<int64_t> widths;
    for (const SweepRow& row : rows) widths.insert(row.rope_dim);
    std::map<int64_t, SlotList> shared;
    Progress progress({.phase = "sweep", .unit = "layers", .total = 2 * plan_.recipe.layers.size()});
    // Rotating everything is a list of single planes, which loses nothing and is the same for every layer.
    std::map<int64_t, std::vector<SlotVote>> votes;
    const SlotRule rule = plan_.recipe.slots;
    const LagLaw law = lag_law(plan_.recipe);
    for_each_layer(progress, [&](int64_t, const SourceHeads& heads, const LatentMoments& own) {
      for (const int64_t width : widths) {
        if (rule != SlotRule::own || width == most(heads.spec)) votes[width].emplace_back(heads, own, width, rule, law);
      }
    });
    for (const auto& [width, layers] : votes) {
      std::vector<const SlotVote*> all;
      for (const SlotVote& layer : layers) all.push_back(&layer);
      shared[width] = choose_slot_list(all);
    }
    votes.clear();
    std::map<const SweepRow*, double> squares;
    for_each_layer(progress, [&](int64_t layer, const SourceHeads& heads, const LatentMoments& own) {
      for (const int64_t width : widths) {
        const auto found = shared.find(width);
        const SlotVote vote(heads, own, width, SlotRule::own, law);
        const SlotList list = found != shared.end() ? found->second : choose_slot_list({&vote});
        const RotarySurvey survey(heads, own, list.groups, law);
        const LatentPrediction prediction = predict_latent(heads, own, survey, list.slots);
        for (SweepRow& row : rows) {
          if (row.rope_dim != width) continue;
          const double error = prediction.error(row.rank, cache_noise(row.bits));
          squares[&row] += error * error;
          if (error <= row.worst_error) continue;
          row.worst_error = error;
          row.worst_layer = layer;
        }
      }
    });
    for (SweepRow& row : rows) row.error = std::sqrt(squares[&row] / static_cast<double>(plan_.recipe.layers.size()));
    progress.finish();
  }

  static int64_t most(const AttentionSpec& spec) { return spec.n_kv_heads * spec.head_dim; }

 private:
  template <typename Use>
  void for_each_layer(Progress& progress, const Use& use) const {
    for (const int64_t layer : plan_.recipe.layers) {
      with_surveyed_layer(source_, plan_.target.layers[static_cast<size_t>(layer)], layer, moments_,
                          [&](const LayerProblem& problem) { use(layer, source_heads(problem), *problem.moments); });
      progress.advance();
      check_interrupt();
    }
  }

  const ModelSource& source_;
  const ConversionPlan& plan_;
  const MomentFile& moments_;
};

/// Sizes of a budget at a precision, or nothing where it cannot be had.
std::optional<SweepRow> row_of(const AttentionSpec& spec, ConversionRecipe recipe, double budget, int bits) {
  recipe.kv_budget = budget;
  recipe.kv_bits = bits;
  try {
    const LatentSizes sizes = latent_sizes(spec, recipe);
    return SweepRow{.budget = budget,
                    .bits = bits,
                    .rank = sizes.rank,
                    .rope_dim = sizes.rope_dim,
                    .kv_ratio = sizes.kv_ratio(spec)};
  } catch (const UsageError&) {
    return std::nullopt;
  }
}

}  // namespace

Json SweepRow::to_json() const {
  return {{"budget", budget},
          {"bits", bits},
          {"rank", rank},
          {"rope_dim", rope_dim},
          {"kv_ratio", kv_ratio},
          {"predicted_error", error},
          {"worst_layer", worst_layer},
          {"worst_error", worst_error}};
}

std::vector<SweepRow> sweep_budgets(const ModelSource& source, const ConversionRecipe& recipe,
                                    const std::vector<double>& budgets, const std::filesystem::path& moments) {
  const c10::InferenceMode inference;
  if (recipe.method != "weighted") {
    throw UsageError(fmt::format("--sweep: nothing is predicted for --method {}", recipe.method),
                     "leave the method out to take weighted");
  }
  ConversionRecipe first = recipe;
  first.kv_budget = *std::max_element(budgets.begin(), budgets.end());  // the others may be too small
  if (first.kv_bits == 0) first.kv_bits = 16;
  const ConversionPlan plan = plan_conversion(source, first, {.output = {}, .format = "native", .dtype = {}});
  const MomentFile file(moments, {{"source", source_identity(source).at("files")}});
  const AttentionSpec& spec = source.config().layers.at(static_cast<size_t>(plan.recipe.layers.at(0)));
  std::vector<SweepRow> rows;
  for (const double budget : budgets) {
    for (const int bits : recipe.kv_bits == 0 ? std::vector{16, 8, 4} : std::vector{recipe.kv_bits}) {
      if (const std::optional<SweepRow> row = row_of(spec, plan.recipe, budget, bits)) rows.push_back(*row);
    }
  }
  if (rows.empty()) throw UsageError("--sweep: no budget of the list leaves enough numbers for a latent");
  if (recipe.kv_bits == 0) {
    const int64_t keys = Sweep::most(spec);
    for (const int bits : {8, 4}) {
      rows.push_back(
          {.bits = bits,
           .rank = keys,
           .rope_dim = keys,
           .kv_ratio = packed_bytes_per_token(spec, {.bits = bits}) / (2.0 * static_cast<double>(spec.kv_elements()))});
    }
  }
  Sweep(source, plan, file).predict(rows);
  std::stable_sort(rows.begin(), rows.end(),
                   [](const SweepRow& a, const SweepRow& b) { return a.kv_ratio > b.kv_ratio; });
  return rows;
}

}  // namespace cinch
