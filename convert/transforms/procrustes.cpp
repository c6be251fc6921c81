// Procrustes-aligned mean: heads are turned towards their group's mean, exactly (phases per rotary plane on K and Q,
// orthogonal maps on V and O), before they are averaged (Jin et al. 2025, arXiv 2412.20677).
#include <ATen/ATen.h>

#include "convert/solvers/merged_heads.h"
#include "convert/solvers/procrustes.h"
#include "convert/transforms/grouped_transform.h"

namespace cinch {
namespace {

/// Rotations of the keys of one group, (g, D, D): phases of rotated planes, an orthogonal map among unrotated dims.
at::Tensor key_rotations(const HeadPlanes& planes, const at::Tensor& moment) {
  at::Tensor maps = plane_map(align_phases(moment));
  const at::Tensor free = unrotated_dims(planes);
  if (free.numel() == 0) return maps;
  const at::Tensor block = align_orthogonal(moment.index_select(1, free).index_select(3, free));
  const at::Tensor all = at::arange(maps.size(0), at::kLong);
  maps.index_put_({all.reshape({-1, 1, 1}), free.reshape({1, -1, 1}), free.reshape({1, 1, -1})}, block);
  return maps;
}

class ProcrustesTransform : public GroupedTransform {
 public:
  std::string name() const override { return "procrustes"; }
  std::string summary() const override {
    return "average the KV heads of each group after rotating them onto each other";
  }

 protected:
  bool refits_by_default() const override { return false; }
  bool merges_by_calibration() const override { return true; }
  std::string qk_norm_caution() const override {
    return "QK-norm: keys are averaged without alignment (the norm does not commute with it); values are aligned "
           "exactly";
  }

  void merge(const LayerProblem& problem, const ConversionRecipe&, LayerSolution& solution) const override {
    const SourceHeads heads = source_heads(problem);
    const HeadMoments moments = head_moments(HeadStream(problem, heads));
    const int64_t groups = problem.target.n_kv_heads, g = problem.source.n_kv_heads / groups,
                  d = problem.source.head_dim;
    std::vector<at::Tensor> keys, values;
    for (int64_t j = 0; j < groups; ++j) {
      const auto members = [&](const at::Tensor& m) {
        return m.slice(0, j * g, (j + 1) * g).slice(2, j * g, (j + 1) * g);
      };
      keys.push_back(problem.source.qk_norm ? at::eye(d, at::kDouble).expand({g, d, d})
                                            : key_rotations(heads.planes, members(moments.key)));
      values.push_back(align_orthogonal(members(moments.value)));
    }
    const at::Tensor key = at::cat(keys), value = at::cat(values);  // (K, D, D)
    const auto averaged = [&](const at::Tensor& maps) {
      return maps.reshape({groups, g, d, d}).permute({0, 2, 1, 3}).contiguous() / static_cast<double>(g);
    };
    MergedHeads merged;
    merged.key = averaged(key);
    merged.value = averaged(value);
    // Rotations are orthogonal, so that queries and o_proj turn by the same maps.
    merged.query = key.repeat_interleave(heads.rep(), 0);
    merged.o = at::bmm(heads.o, value.repeat_interleave(heads.rep(), 0).transpose(1, 2));
    solution.weights = merged_weights(problem, heads, merged);
  }
};

}  // namespace

const Transform& procrustes_transform() {
  static const ProcrustesTransform transform;
  return transform;
}

}  // namespace cinch
