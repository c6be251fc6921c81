#include "convert/transforms/latent_transform.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "convert/solvers/joint_pca.h"
#include "convert/solvers/latent_fit.h"
#include "convert/solvers/latent_output_refit.h"
#include "convert/solvers/latent_query_refit.h"
#include "convert/solvers/latent_weights.h"
#include "core/errors.h"

namespace cinch {
namespace {

constexpr int64_t kStep = 8;             // of sizes that a budget chooses
constexpr int64_t kQueryPositions = 96;  // per window
constexpr int kQuerySteps = 15;          // of conjugate gradients
constexpr double kQueryDamping = 1.0;
constexpr int64_t kFold = 4;  // planes that balanced-pca rotates as one

int64_t all_keys(const AttentionSpec& spec) { return spec.n_kv_heads * spec.head_dim; }
int64_t key_scales(const AttentionSpec& spec) { return spec.qk_norm ? spec.n_kv_heads : 0; }

LatentSizes split_budget(const AttentionSpec& source, double budget) {
  const auto elements = static_cast<int64_t>(budget * static_cast<double>(source.kv_elements())) - key_scales(source);
  const int64_t n = elements / kStep * kStep;
  if (n < 2 * kStep) {
    throw UsageError(
        fmt::format("--kv-budget {:.4g}: leaves {} of {} numbers per token and layer, at least {} are needed", budget,
                    std::max<int64_t>(elements, 0), source.kv_elements(), 2 * kStep),
        "give a larger budget");
  }
  const double wanted = static_cast<double>(source.head_dim) / 4 + static_cast<double>(n) / 6;
  const int64_t most = std::min(n - kStep, all_keys(source)) / kStep * kStep;
  const int64_t rope_dim = std::clamp<int64_t>(std::llround(wanted / kStep) * kStep, std::min(kStep, most), most);
  return {std::min(n - rope_dim, source.kv_elements() - rope_dim), rope_dim};
}

void check_sizes(const AttentionSpec& source, const LatentSizes& sizes) {
  const int64_t most_rank = source.kv_elements() - sizes.rope_dim;
  if (sizes.rope_dim % 2 != 0 || sizes.rope_dim > all_keys(source)) {
    throw UsageError(
        fmt::format("--rope-dim {}: an even number up to {} can stay rotated", sizes.rope_dim, all_keys(source)));
  }
  if (sizes.rank > most_rank) {
    throw UsageError(fmt::format("--rank {}: beside {} rotary numbers a latent of {} holds everything", sizes.rank,
                                 sizes.rope_dim, most_rank),
                     fmt::format("give a rank up to {}", most_rank));
  }
  const int64_t elements = sizes.rank + sizes.rope_dim + key_scales(source);
  if (elements >= source.kv_elements()) {
    throw UnsupportedError(
        fmt::format("--to mla: the cache would not shrink: {} numbers per token and layer now, {} + {}{} then",
                    source.kv_elements(), sizes.rank, sizes.rope_dim,
                    key_scales(source) > 0 ? fmt::format(" + {} key scales", key_scales(source)) : ""),
        "give a smaller --rank or --rope-dim");
  }
}

/// Slots of all layers, or of this one.
struct SharedSlots : SharedChoice {
  std::vector<RotarySlot> slots;
};

struct SlotSurvey : LayerSurvey {
  SlotSurvey(RotarySurvey own, int64_t width) : survey(std::move(own)), rope_dim(width) {}
  RotarySurvey survey;
  int64_t rope_dim;
};

LagLaw lag_law(const ConversionRecipe& recipe) {
  LagLaw law{.tail = recipe.lag_tail};
  if (recipe.lag_context > 0) law.context = recipe.lag_context;
  return law;
}

RotarySurvey rotary_survey(const SourceHeads& heads, const LatentMoments& moments, int64_t rope_dim,
                           const ConversionRecipe& recipe) {
  return RotarySurvey(heads, moments, plane_groups(heads.planes, rope_dim == all_keys(heads.spec)), lag_law(recipe));
}

class LatentTransform : public Transform {
 public:
  TargetKind makes() const override { return TargetKind::mla; }

  AttentionSpec target(const AttentionSpec& source, const ConversionRecipe& recipe) const override {
    const LatentSizes sizes = latent_sizes(source, recipe);
    AttentionSpec spec = latent_spec(source, sizes.rank, sizes.rope_dim, /*output_bias=*/false);
    spec.rope_inv_freq.assign(static_cast<size_t>(sizes.rope_dim / 2), 0.0);  // known once the layer is solved
    return spec;
  }

  LayerSolution solve(const LayerProblem& problem, const ConversionRecipe& recipe) const override {
    const at::NoGradGuard no_grad;
    const SourceHeads heads = source_heads(problem);
    const HeadStream stream(problem, heads);
    LatentMaps maps = fit(problem, recipe, heads, stream);
    const auto error = [&] {
      return std::sqrt(latent_output_error(problem, stream, heads, maps, problem.windows.measured()));
    };
    LayerSolution solution;
    solution.head_order.resize(static_cast<size_t>(problem.source.n_heads));
    std::iota(solution.head_order.begin(), solution.head_order.end(), int64_t{0});
    solution.kept_energy_k = maps.kept_energy_k;
    solution.kept_energy_v = maps.kept_energy_v;
    solution.output_error_before_refit = solution.output_error = error();
    if (refits(recipe)) {
      const LatentOutputOptions options{.lambdas = recipe.refit_lambdas, .bias = problem.output_bias_allowed};
      solution.refit_lambda = refit_latent_output(problem, stream, heads, options, maps).lambda;
      solution.output_error = error();
    }
    LatentLayerWeights made = latent_weights(problem.weights, heads, maps);
    solution.rope_inv_freq = made.spec.rope_inv_freq;
    solution.weights = std::move(made.weights);
    return solution;
  }

  double solve_flops(const AttentionSpec& source, const ConversionRecipe& recipe) const override {
    const auto tokens = static_cast<double>(recipe.calibration_tokens),
               length = static_cast<double>(recipe.calibration_window);
    const auto heads = static_cast<double>(source.n_heads), d = static_cast<double>(source.head_dim);
    const auto joint = static_cast<double>(source.kv_elements());
    const double attention = 2 * heads * tokens * length / 2 * 4 * d;  // the moments' passes through the attention
    const double queries =
        2.0 * kQuerySteps * 4 * (tokens / length) * static_cast<double>(kQueryPositions) * length * heads * d;
    return 3 * attention + queries + 2 * tokens * joint * joint;
  }

 protected:
  virtual LatentMaps fit(const LayerProblem& problem, const ConversionRecipe& recipe, const SourceHeads& heads,
                         const HeadStream& stream) const = 0;
  virtual bool refits_by_default() const = 0;
  bool refits(const ConversionRecipe& recipe) const {
    return recipe.refit == RefitMode::on || (recipe.refit == RefitMode::automatic && refits_by_default());
  }
};

/// docs/conversion.md, the latent method: every map on the query and output side by least squares, weighted by what the
/// softmax does with an error.
class WeightedTransform : public LatentTransform {
 public:
  std::string name() const override { return "weighted"; }
  std::string summary() const override {
    return "a latent (mla), every map fitted by least squares where the softmax and W_O look, then W_O refitted "
           "(default for mla)";
  }
  bool needs_calibration(const ConversionRecipe&) const override { return true; }
  bool surveys(const ConversionRecipe& recipe) const override { return recipe.shared_slots; }

  std::unique_ptr<LayerSurvey> survey(const LayerProblem& problem, const ConversionRecipe& recipe) const override {
    const at::NoGradGuard no_grad;
    const SourceHeads heads = source_heads(problem);
    const LatentMoments moments = latent_moments(HeadStream(problem, heads), heads);
    const int64_t rope_dim = problem.target.qk_rope_head_dim;
    return std::make_unique<SlotSurvey>(rotary_survey(heads, moments, rope_dim, recipe), rope_dim);
  }

  std::unique_ptr<SharedChoice> choose(const std::vector<std::unique_ptr<LayerSurvey>>& layers,
                                       const ConversionRecipe&) const override {
    std::vector<const RotarySurvey*> surveys;
    int64_t rope_dim = 0;
    for (const auto& layer : layers) {
      const auto& own = dynamic_cast<const SlotSurvey&>(*layer);
      surveys.push_back(&own.survey);
      rope_dim = own.rope_dim;
    }
    auto choice = std::make_unique<SharedSlots>();
    choice->slots = choose_slots(surveys, rope_dim);
    return choice;
  }

 protected:
  bool refits_by_default() const override { return true; }

  LatentMaps fit(const LayerProblem& problem, const ConversionRecipe& recipe, const SourceHeads& heads,
                 const HeadStream& stream) const override {
    const LatentMoments moments = latent_moments(stream, heads);
    const RotarySurvey own = rotary_survey(heads, moments, problem.target.qk_rope_head_dim, recipe);
    const auto* shared = dynamic_cast<const SharedSlots*>(problem.shared);
    const RotaryMaps rotary =
        own.maps(shared != nullptr ? shared->slots : choose_slots({&own}, problem.target.qk_rope_head_dim));
    const LatentBasis basis = latent_basis(heads, moments, rotary, problem.target.kv_lora_rank);
    LatentMaps maps = latent_maps(heads, rotary, basis, up_map_moments(stream, heads, rotary, basis));
    maps.query = LatentQueryProblem(stream, heads, maps, kQueryPositions).solve(kQuerySteps, kQueryDamping);
    return maps;
  }
};

/// TransMLA's conversion (joint_pca.h), and the same without activations.
class PcaTransform : public LatentTransform {
 public:
  explicit PcaTransform(bool activations) : activations_(activations) {}
  std::string name() const override { return activations_ ? "balanced-pca" : "weight-svd"; }
  std::string summary() const override {
    return activations_ ? "a latent (mla) by TransMLA's rotations and balanced joint PCA"
                        : "a latent (mla) by the same from the weights alone";
  }
  bool needs_calibration(const ConversionRecipe& recipe) const override { return activations_ || refits(recipe); }

 protected:
  bool refits_by_default() const override { return false; }

  LatentMaps fit(const LayerProblem& problem, const ConversionRecipe&, const SourceHeads& heads,
                 const HeadStream& stream) const override {
    const at::Tensor gram = activations_ ? activation_gram(latent_moments(stream, heads)) : weight_gram(heads);
    const int64_t rope_dim = problem.target.qk_rope_head_dim;
    const RotaryMaps rotary = folded_rotary_maps(heads, gram, rope_dim, fold_for(heads.planes.planes, rope_dim / 2));
    return latent_maps(heads, rotary, joint_pca(heads, gram, rotary, problem.target.kv_lora_rank, activations_));
  }

 private:
  /// The fold nearest to four whose groups can share the slots equally.
  static int64_t fold_for(int64_t planes, int64_t slots) {
    int64_t best = kFold;
    double distance = INFINITY;
    for (int64_t fold = 1; fold <= planes; ++fold) {
      if (planes % fold != 0 || slots % (planes / fold) != 0) continue;
      const double d = std::abs(std::log2(static_cast<double>(fold) / kFold));
      if (d < distance) {
        distance = d;
        best = fold;
      }
    }
    return best;
  }
  bool activations_;
};

}  // namespace

LatentSizes latent_sizes(const AttentionSpec& source, const ConversionRecipe& recipe) {
  const LatentSizes sizes =
      recipe.kv_budget > 0 ? split_budget(source, recipe.kv_budget) : LatentSizes{recipe.rank, recipe.rope_dim};
  check_sizes(source, sizes);
  return sizes;
}

const Transform& weighted_transform() {
  static const WeightedTransform transform;
  return transform;
}

const Transform& balanced_pca_transform() {
  static const PcaTransform transform(true);
  return transform;
}

const Transform& weight_svd_transform() {
  static const PcaTransform transform(false);
  return transform;
}

}  // namespace cinch
