// A transform replaces the attention of one layer by a smaller one. The explicit list is in transform_list.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention_weights.h"
#include "convert/conversion_recipe.h"
#include "convert/window_roles.h"

namespace cinch {

struct LatentMoments;

/// What a method remembers of one layer of the original until it has seen them all.
class LayerSurvey {
 public:
  virtual ~LayerSurvey() = default;
};

/// What it chooses from these, knowing all layers.
class SharedChoice {
 public:
  virtual ~SharedChoice() = default;
  /// The sizes of a layer's target, where the plan left them open.
  virtual void complete(int64_t layer, AttentionSpec& target) const {
    (void)layer;
    (void)target;
  }
};

/// One layer as a transform sees it. Streams are on the calibration windows; everything is fp32 unless a test asks for
/// fp64.
struct LayerProblem {
  int64_t layer = 0;
  AttentionSpec source;         // grouped-query, K source KV heads
  AttentionSpec target;         // a smaller cache
  GroupedQueryWeights weights;  // of the source
  at::Tensor teacher;           // (W, T, E) residual stream before this layer in the original model
  at::Tensor student;           // (W, T, E) the same in the converted model so far
  WindowRoles windows;
  std::function<at::Tensor(const at::Tensor&)> attention_input;  // the layer's input norm, (.., E) -> (.., E)
  /// Attention's contribution to the residual stream from the o_proj output (identity unless the family has sandwich
  /// norms).
  std::function<at::Tensor(const at::Tensor&)> attention_residual;
  const LatentMoments* moments = nullptr;  // of the original, for methods that use them
  const SharedChoice* shared = nullptr;    // of Transform::choose, for methods that survey
  bool output_bias_allowed = false;        // the target class has an o_proj bias
};

struct LayerSolution {
  AttentionWeights weights;           // shapes and kind of `target`
  std::vector<double> rope_inv_freq;  // of a latent target's rotary slots, which the plan leaves open
  std::vector<int64_t> head_order;    // (H) source query head at each target position
  double kept_energy_k = 1.0;         // share of query-weighted key energy that the shared heads keep
  double kept_energy_v = 1.0;
  double output_error_before_refit =
      0;                       // relative error of the attention output on windows.measured() (teacher stream)
  double output_error = 0;     // after the W_O refit
  double refit_lambda = 0;     // 0: no refit
  double predicted_error = 0;  // of the attention output, from moments alone; 0: not predicted
  double predicted_error_own_slots = 0;  // of a latent with the layer's own rotary slots, where layers share them
  std::vector<std::string> warnings;     // what was approximated (QK-norm)

  /// The weights of a grouped-query target.
  GroupedQueryWeights& grouped_query() { return std::get<GroupedQueryWeights>(weights); }
  const GroupedQueryWeights& grouped_query() const { return std::get<GroupedQueryWeights>(weights); }
};

class Transform {
 public:
  virtual ~Transform() = default;
  virtual std::string name() const = 0;
  virtual std::string summary() const = 0;  // one line for --help
  virtual TargetKind makes() const = 0;
  /// Target attention of a layer, or UnsupportedError / UsageError with the rule. Reads no weights.
  virtual AttentionSpec target(const AttentionSpec& source, const ConversionRecipe& recipe) const = 0;
  /// Bits of a cached number that the target is made for.
  virtual int planned_bits(const AttentionSpec& source, const ConversionRecipe& recipe) const {
    (void)source;
    (void)recipe;
    return 16;
  }
  /// Warnings that `plan` prints (QK-norm: what is approximate).
  virtual std::vector<std::string> cautions(const AttentionSpec& source, const ConversionRecipe& recipe) const {
    (void)source;
    (void)recipe;
    return {};
  }
  virtual bool needs_calibration(const ConversionRecipe& recipe) const = 0;
  /// Floating-point operations of `solve` beyond a few passes through the layer, roughly: for time estimates.
  virtual double solve_flops(const AttentionSpec& source, const ConversionRecipe& recipe) const {
    (void)source;
    (void)recipe;
    return 0;
  }
  /// Most memory that `solve` takes beyond the layer's weights and the residual streams.
  virtual int64_t solve_bytes(const AttentionSpec& source, const AttentionSpec& target,
                              const ConversionRecipe& recipe) const = 0;
  /// True when problems carry the moments of the original layer, measured in a pass of their own or read from a file.
  virtual bool uses_moments(const ConversionRecipe& recipe) const {
    (void)recipe;
    return false;
  }
  /// True when something is chosen for all layers together. `survey` then gets each layer's weights and moments, but no
  /// activations (streams of no windows).
  virtual bool surveys(const ConversionRecipe& recipe) const {
    (void)recipe;
    return false;
  }
  virtual std::unique_ptr<LayerSurvey> survey(const LayerProblem& problem, const ConversionRecipe& recipe) const {
    (void)problem;
    (void)recipe;
    return nullptr;
  }
  virtual std::unique_ptr<SharedChoice> choose(const std::vector<std::unique_ptr<LayerSurvey>>& layers,
                                               const ConversionRecipe& recipe) const {
    (void)layers;
    (void)recipe;
    return nullptr;
  }
  virtual LayerSolution solve(const LayerProblem& problem, const ConversionRecipe& recipe) const = 0;
};

const std::vector<const Transform*>& transforms();
/// Throws UsageError naming the nearest known method.
const Transform& transform(const std::string& name);
/// The method that is taken when none is named.
std::string default_method(TargetKind target);

}  // namespace cinch
