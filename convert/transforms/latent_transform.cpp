#include "convert/transforms/latent_transform.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "convert/solvers/joint_pca.h"
#include "convert/solvers/latent_fit.h"
#include "convert/solvers/latent_output_refit.h"
#include "convert/solvers/latent_prediction.h"
#include "convert/solvers/latent_query_refit.h"
#include "convert/solvers/latent_weights.h"
#include "convert/transforms/latent_sizes.h"

namespace cinch {
namespace {

constexpr int64_t kStep = LatentSizes::kStep;
constexpr int64_t kQueryPositions = 96;  // per window
constexpr int kQuerySteps = 15;          // of conjugate gradients
constexpr double kQueryDamping = 1.0;
constexpr int64_t kFold = 4;  // planes that balanced-pca rotates as one

/// What the layers share: one slot list, and a total of ranks.
struct LatentChoice : SharedChoice {
  std::optional<SlotList> slots;     // for all layers, where they share them
  std::map<int64_t, int64_t> ranks;  // by layer, where they differ

  void complete(int64_t layer, AttentionSpec& target) const override {
    const auto found = ranks.find(layer);
    if (found != ranks.end()) target.kv_lora_rank = found->second;
  }
};

struct LatentSurvey : LayerSurvey {
  int64_t layer = 0, rank = 0;
  std::optional<SlotVote> vote;  // where layers share slots
  /// (N+1) what a latent of r numbers leaves out, relative to the residual stream that the layer adds to; with
  /// per-layer ranks only.
  std::vector<double> dropped;
};

/// Ranks from half to twice the common one, as many in all, that leave out least: in steps, each where it helps most
/// (which is best, as every further number helps less).
std::map<int64_t, int64_t> share_ranks(const std::vector<const LatentSurvey*>& layers) {
  std::map<int64_t, int64_t> ranks;
  int64_t left = 0;
  for (const LatentSurvey* layer : layers) {
    ranks[layer->layer] = std::max(layer->rank / 2 / kStep * kStep, std::min(kStep, layer->rank));
    left += layer->rank - ranks[layer->layer];
  }
  for (; left >= kStep; left -= kStep) {
    const LatentSurvey* best = nullptr;
    double most = -1;
    for (const LatentSurvey* layer : layers) {
      const int64_t now = ranks[layer->layer], then = now + kStep;
      if (then > 2 * layer->rank || then >= static_cast<int64_t>(layer->dropped.size())) continue;
      const double gain = layer->dropped[static_cast<size_t>(now)] - layer->dropped[static_cast<size_t>(then)];
      if (gain > most) {
        most = gain;
        best = layer;
      }
    }
    if (best == nullptr) break;
    ranks[best->layer] += kStep;
  }
  return ranks;
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

  std::vector<std::string> cautions(const AttentionSpec& source, const ConversionRecipe& recipe) const override {
    const std::string& type = source.rope.type;
    if (type != "dynamic" && type != "longrope") return {};
    return {
        fmt::format("the model's {} rotary frequencies depend on the length of the text; a latent's stay those of "
                    "{} tokens, the calibration window",
                    type, recipe.calibration_window)};
  }

  int planned_bits(const AttentionSpec& source, const ConversionRecipe& recipe) const override {
    return latent_sizes(source, recipe).bits;
  }

  LayerSolution solve(const LayerProblem& problem, const ConversionRecipe& recipe) const override {
    const at::NoGradGuard no_grad;
    const SourceHeads heads = source_heads(problem);
    const HeadStream stream(problem, heads);
    Fit made_fit = fit(problem, recipe, heads, stream);
    LatentMaps& maps = made_fit.maps;
    const auto error = [&] {
      return std::sqrt(latent_output_error(problem, stream, heads, maps, problem.windows.measured()));
    };
    LayerSolution solution;
    solution.head_order.resize(static_cast<size_t>(problem.source.n_heads));
    std::iota(solution.head_order.begin(), solution.head_order.end(), int64_t{0});
    solution.predicted_error = made_fit.predicted_error;
    solution.predicted_error_own_slots = made_fit.predicted_own_slots;
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

  int64_t solve_bytes(const AttentionSpec& source, const AttentionSpec& target,
                      const ConversionRecipe& recipe) const override {
    const int64_t h = source.n_heads, d = source.head_dim, e = source.hidden_size, joint = source.kv_elements();
    const int64_t t = recipe.calibration_window, windows = recipe.calibration_tokens / t;
    const int64_t features = target.kv_lora_rank + target.qk_rope_head_dim, outputs = h * d;
    const int64_t positions = h * std::min(kQueryPositions, t);
    const int64_t heads = (outputs + joint) * e * (8 + 4) + 2 * outputs * e * 8;  // fp64 and fp32 projections, maps
    const int64_t window = 3 * t * (outputs + joint) * 4;
    const int64_t spectrum = 10 * joint * joint * 8, up_maps = 6 * h * features * (features + d) * 8;
    const int64_t queries = windows * (t * features + positions * (t + d)) * 4 + 3 * positions * t * 4 +
                            h * features * (3 * features + 10 * d) * 8;
    const int64_t refit = 5 * outputs * outputs * 8 + 4 * outputs * e * 8;
    return heads + window + std::max({spectrum + up_maps, queries, refit});
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
  /// Maps of a layer, and the error that was expected of them.
  struct Fit {
    LatentMaps maps;
    double predicted_error = 0;      // 0: not predicted
    double predicted_own_slots = 0;  // with the layer's own slots, where layers share them
  };
  virtual Fit fit(const LayerProblem& problem, const ConversionRecipe& recipe, const SourceHeads& heads,
                  const HeadStream& stream) const = 0;
  virtual bool refits_by_default() const = 0;
  bool refits(const ConversionRecipe& recipe) const {
    return recipe.refit == RefitMode::on || (recipe.refit == RefitMode::automatic && refits_by_default());
  }
};

/// The slots that serve this layer best.
SlotList own_slots(const SourceHeads& heads, const LatentMoments& moments, int64_t rope_dim,
                   const ConversionRecipe& recipe) {
  const SlotVote vote(heads, moments, rope_dim, SlotRule::own, lag_law(recipe));
  return choose_slot_list({&vote});
}

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
  bool uses_moments(const ConversionRecipe&) const override { return true; }
  bool surveys(const ConversionRecipe& recipe) const override {
    return recipe.slots != SlotRule::own || recipe.per_layer;
  }

  std::unique_ptr<LayerSurvey> survey(const LayerProblem& problem, const ConversionRecipe& recipe) const override {
    const at::NoGradGuard no_grad;
    const SourceHeads heads = source_heads(problem);
    const LatentMoments& moments = *problem.moments;
    const int64_t rope_dim = problem.target.qk_rope_head_dim;
    auto result = std::make_unique<LatentSurvey>();
    result->layer = problem.layer;
    result->rank = problem.target.kv_lora_rank;
    if (recipe.slots != SlotRule::own) result->vote.emplace(heads, moments, rope_dim, recipe.slots, lag_law(recipe));
    if (recipe.per_layer) {
      const SlotList own = own_slots(heads, moments, rope_dim, recipe);
      const RotarySurvey rotary(heads, moments, own.groups, lag_law(recipe));
      const double unit = moments.output_energy / std::max(moments.residual_energy, 1e-300);
      const at::Tensor dropped = predict_latent(heads, moments, rotary, own.slots).dropped * unit;
      result->dropped.assign(dropped.const_data_ptr<double>(), dropped.const_data_ptr<double>() + dropped.numel());
    }
    return result;
  }

  std::unique_ptr<SharedChoice> choose(const std::vector<std::unique_ptr<LayerSurvey>>& layers,
                                       const ConversionRecipe& recipe) const override {
    std::vector<const SlotVote*> votes;
    std::vector<const LatentSurvey*> surveys;
    for (const auto& layer : layers) {
      surveys.push_back(&dynamic_cast<const LatentSurvey&>(*layer));
      if (surveys.back()->vote) votes.push_back(&*surveys.back()->vote);
    }
    auto choice = std::make_unique<LatentChoice>();
    if (!votes.empty()) choice->slots = choose_slot_list(votes);
    if (recipe.per_layer) choice->ranks = share_ranks(surveys);
    return choice;
  }

 protected:
  bool refits_by_default() const override { return true; }

  Fit fit(const LayerProblem& problem, const ConversionRecipe& recipe, const SourceHeads& heads,
          const HeadStream& stream) const override {
    const LatentMoments& moments = *problem.moments;
    const int64_t rank = problem.target.kv_lora_rank, rope_dim = problem.target.qk_rope_head_dim;
    const SlotList own = own_slots(heads, moments, rope_dim, recipe);
    const auto* choice = dynamic_cast<const LatentChoice*>(problem.shared);
    const bool shares = choice != nullptr && choice->slots;
    const SlotList& list = shares ? *choice->slots : own;
    const RotarySurvey survey(heads, moments, list.groups, lag_law(recipe));
    const RotaryMaps rotary = survey.maps(list.slots);
    const LatentSpectrum spectrum = latent_spectrum(heads, moments, rotary);
    Fit result;
    result.predicted_error = predict_latent(moments, survey, list.slots, spectrum).error(rank);
    if (shares) {
      const RotarySurvey alone(heads, moments, own.groups, lag_law(recipe));
      result.predicted_own_slots = predict_latent(heads, moments, alone, own.slots).error(rank);
    }
    const LatentBasis basis = latent_basis(spectrum, rank);
    result.maps = latent_maps(heads, rotary, basis, up_map_moments(stream, heads, rotary, basis));
    result.maps.query =
        LatentQueryProblem(stream, heads, result.maps, kQueryPositions).solve(kQuerySteps, kQueryDamping);
    return result;
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
  bool uses_moments(const ConversionRecipe&) const override { return activations_; }

 protected:
  bool refits_by_default() const override { return false; }

  Fit fit(const LayerProblem& problem, const ConversionRecipe&, const SourceHeads& heads,
          const HeadStream&) const override {
    const at::Tensor gram = activations_ ? activation_gram(*problem.moments) : weight_gram(heads);
    const int64_t rope_dim = problem.target.qk_rope_head_dim;
    const RotaryMaps rotary = folded_rotary_maps(heads, gram, rope_dim, fold_for(heads.planes.planes, rope_dim / 2));
    return {.maps =
                latent_maps(heads, rotary, joint_pca(heads, gram, rotary, problem.target.kv_lora_rank, activations_))};
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

LagLaw lag_law(const ConversionRecipe& recipe) {
  LagLaw law{.tail = recipe.lag_tail};
  if (recipe.lag_context > 0) law.context = recipe.lag_context;
  return law;
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
