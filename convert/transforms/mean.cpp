// Mean pooling of K and V heads (Ainslie et al. 2023, arXiv 2305.13245), and its variant that keeps the first head of
// each group.
#include <ATen/ATen.h>

#include "convert/transforms/grouped_transform.h"

namespace cinch {
namespace {

/// (K*D, ..) -> (G, K/G, D, ..), defined tensors only.
at::Tensor grouped(const at::Tensor& rows, int64_t groups, int64_t head_dim) {
  std::vector<int64_t> shape = {groups, rows.size(0) / groups / head_dim, head_dim};
  if (rows.dim() == 2) shape.push_back(rows.size(1));
  return rows.reshape(shape);
}

class PoolTransform : public GroupedTransform {
 public:
  explicit PoolTransform(bool first) : first_(first) {}
  std::string name() const override { return first_ ? "first" : "mean"; }
  std::string summary() const override {
    return first_ ? "keep the first KV head of each group" : "average the KV heads of each group";
  }

 protected:
  bool refits_by_default() const override { return false; }
  bool merges_by_calibration() const override { return false; }
  std::string qk_norm_caution() const override {
    return first_ ? ""
                  : "QK-norm: averaged keys are normalised after the average, so that their scale per token is not the "
                    "average's";
  }
  void merge(const LayerProblem& problem, const ConversionRecipe&, LayerSolution& solution) const override {
    solution.weights = problem.weights;
    GroupedQueryWeights& w = solution.grouped_query();
    for (at::Tensor* rows : {&w.k_proj, &w.v_proj, &w.k_bias, &w.v_bias}) {
      if (rows->defined()) *rows = pool(grouped(*rows, problem.target.n_kv_heads, problem.target.head_dim));
    }
  }

 private:
  at::Tensor pool(const at::Tensor& heads) const {
    const at::Tensor pooled = first_ ? heads.select(1, 0) : heads.mean(1);
    return pooled.flatten(0, 1).contiguous();
  }
  bool first_;
};

}  // namespace

const Transform& mean_transform() {
  static const PoolTransform transform(false);
  return transform;
}

const Transform& first_transform() {
  static const PoolTransform transform(true);
  return transform;
}

}  // namespace cinch
