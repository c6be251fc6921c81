// What all transforms to fewer KV heads share: the target, the order merge -> measure -> W_O refit.
#pragma once

#include <string>
#include <vector>

#include "convert/transform.h"

namespace cinch {

class GroupedTransform : public Transform {
 public:
  /// The source with recipe.n_kv_heads KV heads. Throws UsageError unless that divides the source's.
  AttentionSpec target(const AttentionSpec& source, const ConversionRecipe& recipe) const override;
  std::vector<std::string> cautions(const AttentionSpec& source, const ConversionRecipe& recipe) const override;
  bool needs_calibration(const ConversionRecipe& recipe) const override;
  TargetKind makes() const override { return TargetKind::gqa; }
  int64_t solve_bytes(const AttentionSpec& source, const AttentionSpec& target,
                      const ConversionRecipe& recipe) const override;
  LayerSolution solve(const LayerProblem& problem, const ConversionRecipe& recipe) const override;

 protected:
  /// Whether RefitMode::automatic refits W_O.
  virtual bool refits_by_default() const = 0;
  /// Whether `merge` reads the calibration windows.
  virtual bool merges_by_calibration() const = 0;
  /// What QK-norm makes approximate, in words; empty when nothing.
  virtual std::string qk_norm_caution() const = 0;
  /// Fills solution.weights (shapes of the target; biases and norms included), head_order and the kept energies.
  virtual void merge(const LayerProblem& problem, const ConversionRecipe& recipe, LayerSolution& solution) const = 0;

 private:
  bool refits(const ConversionRecipe& recipe) const;
};

// The explicit list's entries, each in its own file.
const Transform& aligned_transform();
const Transform& procrustes_transform();
const Transform& mean_transform();
const Transform& first_transform();

}  // namespace cinch
