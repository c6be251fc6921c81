#include "convert/solvers/gauge.h"

#include <ATen/ATen.h>

#include "convert/solvers/linear_algebra.h"

namespace cinch {
namespace {

/// E x x^T (K, D, K, D) -> of maps[a] x_a.
at::Tensor mapped(const at::Tensor& moment, const at::Tensor& maps) {
  return at::einsum("aij,ajbk,blk->aibl", {maps, moment, maps});
}

/// (.., D, D) -> (.., P): power of each plane.
at::Tensor plane_power(const at::Tensor& moment) {
  const auto halves = moment.diagonal(0, -2, -1).chunk(2, -1);
  return halves[0] + halves[1];
}

/// Root of the query power of each head (K, D, D), plane by plane and as a whole among unrotated dims; and its inverse.
RootPair query_root(const HeadPlanes& planes, const at::Tensor& query) {
  const at::Tensor power = plane_power(query), root = power.sqrt();
  const at::Tensor inverse = at::where(power > 0, power, at::ones_like(power)).rsqrt() * (power > 0);
  RootPair result{at::diag_embed(at::cat({root, root}, -1)), at::diag_embed(at::cat({inverse, inverse}, -1))};
  const at::Tensor free = unrotated_dims(planes);
  if (free.numel() == 0) return result;
  const RootPair block = root_pair(query.index_select(1, free).index_select(2, free));
  const at::Tensor all = at::arange(query.size(0), at::kLong).reshape({-1, 1, 1});
  const c10::List<std::optional<at::Tensor>> places({all, free.reshape({1, -1, 1}), free.reshape({1, 1, -1})});
  result.root.index_put_(places, block.root);
  result.inverse.index_put_(places, block.inverse);
  return result;
}

at::Tensor diagonal_moments(const at::Tensor& moment) { return moment.diagonal(0, 0, 2).permute({2, 0, 1}); }

/// (G, D, D) moments of shared heads.
at::Tensor shared_moments(const at::Tensor& map, const at::Tensor& moment) {
  const int64_t groups = map.size(0), g = map.size(2), d = map.size(1);
  std::vector<at::Tensor> result;
  for (int64_t j = 0; j < groups; ++j) {
    const at::Tensor own = moment.slice(0, j * g, (j + 1) * g).slice(2, j * g, (j + 1) * g).reshape({g * d, g * d});
    const at::Tensor b = map[j].reshape({d, g * d});
    result.push_back(at::matmul(at::matmul(b, own), b.transpose(0, 1)));
  }
  return at::stack(result);
}

at::Tensor safe_ratio(const at::Tensor& wanted, const at::Tensor& have) {
  const at::Tensor usable = (wanted > 0).logical_and(have > 0);
  return at::where(usable, wanted / have, at::ones_like(have)).sqrt();
}

}  // namespace

void to_canonical(SourceHeads& heads, HeadMoments& moments, const ResidualPath& path) {
  const int64_t k = heads.spec.n_kv_heads, rep = heads.rep(), d = heads.spec.head_dim;
  if (!heads.spec.qk_norm) {
    const RootPair root = query_root(heads.planes, moments.query.reshape({k, rep, d, d}).sum(1));
    const at::Tensor query_map = root.inverse.repeat_interleave(rep, 0);
    heads.k = at::bmm(root.root, heads.k);
    heads.q = at::bmm(query_map, heads.q);
    moments.key = mapped(moments.key, root.root);
    moments.query = at::bmm(at::bmm(query_map, moments.query), query_map);
  }
  const at::Tensor o = heads.o * path.gain.reshape({1, -1, 1});
  const RootPair metric = root_pair(at::bmm(o.transpose(1, 2), o).reshape({k, rep, d, d}).sum(1));
  heads.v = at::bmm(metric.root, heads.v);
  heads.o = at::bmm(o, metric.inverse.repeat_interleave(rep, 0));
  moments.value = mapped(moments.value, metric.root);
}

void to_natural_scale(MergedHeads& merged, const HeadMoments& source, const HeadMoments& canonical,
                      const ResidualPath& path, bool qk_norm) {
  const int64_t groups = merged.key.size(0), g = merged.key.size(2), d = merged.key.size(1);
  const int64_t heads = merged.query.size(0) / groups;
  if (!qk_norm) {
    const at::Tensor wanted = plane_power(diagonal_moments(source.key)).reshape({groups, g, d / 2}).mean(1);
    const at::Tensor scale = safe_ratio(wanted, plane_power(shared_moments(merged.key, canonical.key)));  // (G, P)
    const at::Tensor dims = at::cat({scale, scale}, -1);
    merged.key = merged.key * dims.reshape({groups, d, 1, 1});
    merged.query = merged.query / dims.repeat_interleave(heads, 0).unsqueeze(-1);
  }
  const at::Tensor wanted = batch_trace(diagonal_moments(source.value)).reshape({groups, g}).mean(1);
  const at::Tensor scale = safe_ratio(wanted, batch_trace(shared_moments(merged.value, canonical.value)));  // (G)
  merged.value = merged.value * scale.reshape({groups, 1, 1, 1});
  merged.o = merged.o / scale.repeat_interleave(heads, 0).reshape({-1, 1, 1}) / path.gain.reshape({1, -1, 1});
}

}  // namespace cinch
