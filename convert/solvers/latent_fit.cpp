#include "convert/solvers/latent_fit.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "convert/solvers/linear_algebra.h"
#include "core/errors.h"

namespace cinch {
namespace {

constexpr double kMetricDamping = 1e-2, kUpMapRidge = 1e-6;

/// rest_query mapped back: (H, D, N_K) B_h.
at::Tensor unrotated_queries(const RotaryMaps& rotary) { return rotary.rest_query.transpose(1, 2); }

at::Tensor key_metric(const SourceHeads& heads, const LatentMoments& moments, const RotaryMaps& rotary) {
  const at::Tensor b = unrotated_queries(rotary);
  const at::Tensor sum = at::matmul(b.transpose(1, 2), at::matmul(moments.query, b)).sum(0);
  return sum * (heads.spec.scale * heads.spec.scale);
}

/// (K*D, K*D)
at::Tensor value_metric(const SourceHeads& heads, const LatentMoments& moments) {
  const int64_t d = heads.spec.head_dim, k = heads.spec.n_kv_heads, keys = k * d;
  const at::Tensor m = at::bmm(heads.o.transpose(1, 2), heads.o);
  const at::Tensor mean = moments.joint_mean.slice(0, keys);
  const at::Tensor covariance = moments.joint.slice(0, keys).slice(1, keys) - at::outer(mean, mean);
  std::vector<at::Tensor> blocks;
  for (int64_t kv = 0; kv < k; ++kv) {
    const at::Tensor own = covariance.slice(0, kv * d, (kv + 1) * d).slice(1, kv * d, (kv + 1) * d);
    at::Tensor block = at::zeros({d, d}, at::kDouble);
    for (int64_t h = kv * heads.rep(); h < (kv + 1) * heads.rep(); ++h) {
      const at::Tensor output = moments.output[h] - at::outer(moments.output_mean[h], moments.output_mean[h]);
      const double spread = (m[h] * own).sum().item<double>();
      if (spread > 0) block += m[h] * ((m[h] * output).sum().item<double>() / spread);
    }
    blocks.push_back(block);
  }
  return at::block_diag(blocks);
}

double share(const at::Tensor& part, const at::Tensor& all) {
  const double total = all.trace().item<double>();
  return total > 0 ? part.trace().item<double>() / total : 1.0;
}

/// W = start + (cross - start gram)(gram + ridge)^-1 for batches (H, ..): start (H, D, R) stays where nothing speaks
/// against it.
at::Tensor refined(const at::Tensor& start, const at::Tensor& gram, const at::Tensor& cross) {
  const at::Tensor wanted = cross - at::bmm(start, gram);
  return start + solve_symmetric(damped(gram, kUpMapRidge), wanted.transpose(1, 2)).transpose(1, 2);
}

/// Per query head: keys' up-maps (H, D, R) and values' (H, D, R) of the basis.
at::Tensor basis_key_up(const RotaryMaps& rotary, const LatentBasis& basis) {
  return at::matmul(unrotated_queries(rotary), basis.decode.slice(0, 0, rotary.rest_key.size(0)));
}
at::Tensor basis_value_up(const SourceHeads& heads, const RotaryMaps& rotary, const LatentBasis& basis) {
  return basis.decode.slice(0, rotary.rest_key.size(0))
      .reshape({heads.spec.n_kv_heads, heads.spec.head_dim, -1})
      .repeat_interleave(heads.rep(), 0);
}

LatentMaps assemble(const SourceHeads& heads, const RotaryMaps& rotary, const LatentBasis& basis,
                    const at::Tensor& key_up, const at::Tensor& value_up) {
  at::Tensor k = heads.k;  // without the 1/rms of QK-norm, which the scores get
  if (heads.k_norm.defined()) k = k * heads.k_norm.unsqueeze(1);
  const at::Tensor keys = k.flatten(0, 1), joint = at::cat({keys, heads.v.flatten(0, 1)}, 0);
  return {.down = at::matmul(basis.encode, joint),
          .rotary_key = at::matmul(rotary.rotary_key, keys),
          .query = at::cat({key_up.transpose(1, 2), rotary.rotary_query}, 1),
          .value_up = value_up,
          .o = heads.o,
          .o_bias = heads.o_bias,
          .inv_freq = rotary.inv_freq,
          .kept_energy_k = basis.kept_energy_k,
          .kept_energy_v = basis.kept_energy_v};
}

}  // namespace

LatentSpectrum latent_spectrum(const SourceHeads& heads, const LatentMoments& moments, const RotaryMaps& rotary) {
  const int64_t keys = rotary.rest_key.size(0), all = keys + heads.v.size(0) * heads.v.size(1);
  const at::Tensor select = at::block_diag({rotary.rest_key, at::eye(all - keys, at::kDouble)});  // (N, 2KD) Z
  const RootPair key_root = root_pair(damped(key_metric(heads, moments, rotary), kMetricDamping));
  const RootPair value_root = root_pair(damped(value_metric(heads, moments), kMetricDamping));
  const at::Tensor root = at::block_diag({key_root.root, value_root.root});
  const at::Tensor inverse = at::block_diag({key_root.inverse, value_root.inverse});
  const at::Tensor mapped = at::matmul(root, select);
  const at::Tensor gram = at::matmul(at::matmul(mapped, moments.joint), mapped.transpose(0, 1));
  const Eigen eigen = eigen_descending((gram + gram.transpose(0, 1)) / 2);
  const at::Tensor energy = eigen.values.clamp_min(0);
  const at::Tensor means = at::matmul(eigen.vectors.transpose(0, 1), at::matmul(mapped, moments.joint_mean));
  return {.keys = keys,
          .energy = energy,
          .spread = (energy - means.square()).clamp_min(0),
          .vectors = eigen.vectors,
          .mapped = mapped,
          .inverse = inverse,
          .gram = gram};
}

LatentBasis latent_basis(const LatentSpectrum& spectrum, int64_t rank) {
  const int64_t keys = spectrum.keys, all = spectrum.energy.size(0);
  if (rank < 1 || rank > all)
    throw UsageError(fmt::format("a latent of {} numbers is not possible: 1 to {} are", rank, all));
  const at::Tensor& gram = spectrum.gram;
  const at::Tensor top = spectrum.vectors.slice(1, 0, rank);
  const at::Tensor kept = at::matmul(top * spectrum.energy.slice(0, 0, rank), top.transpose(0, 1));
  // At full rank any basis will do, and that of the source itself is not blurred by rounding the maps.
  const bool whole = rank == all;
  return {.encode = at::matmul(whole ? spectrum.inverse : top.transpose(0, 1), spectrum.mapped),
          .decode = whole ? at::eye(all, at::kDouble) : at::matmul(spectrum.inverse, top),
          .kept_energy_k = share(kept.slice(0, 0, keys).slice(1, 0, keys), gram.slice(0, 0, keys).slice(1, 0, keys)),
          .kept_energy_v = share(kept.slice(0, keys).slice(1, keys), gram.slice(0, keys).slice(1, keys))};
}

UpMapMoments up_map_moments(const HeadStream& stream, const SourceHeads& heads, const RotaryMaps& rotary,
                            const LatentBasis& basis) {
  const int64_t n = heads.spec.n_heads, d = heads.spec.head_dim, r = basis.encode.size(0);
  const WeighedAttention attention(stream, heads);
  const at::Tensor encode = basis.encode.transpose(0, 1).to(stream.options());
  const at::Tensor unrotated = at::matmul(unrotated_queries(rotary), rotary.rest_key)  // (H, D, K*D)
                                   .transpose(1, 2)
                                   .to(stream.options());
  const auto zeros = [&](int64_t rows) { return at::zeros({n, rows, r}, stream.options().dtype(at::kDouble)); };
  UpMapMoments m{zeros(r), zeros(d), zeros(r), zeros(d)};
  for (const int64_t w : stream.fit()) {
    const Projections x = stream.project(w);
    const at::Tensor z = joint_rows(x), c = at::matmul(z, encode), keys = z.slice(1, 0, unrotated.size(1));
    for (const HeadPart& part : stream.head_parts()) {
      at::Tensor output = at::empty_like(part.of_queries(x.q));
      std::vector<int64_t> sizes = output.sizes().vec();  // (.., T, D)
      sizes.back() = r;
      at::Tensor mean = at::empty(sizes, stream.options());
      sizes.pop_back();
      at::Tensor key_weights = at::zeros(sizes, stream.options());
      attention.for_each_block(x, part, [&](const HeadBlock& block) {
        const int64_t end = block.weights.size(-1);
        key_weights.slice(-1, 0, end).add_(block.weights.sum(-2));
        mean.slice(-2, block.first, end).copy_(at::matmul(block.p, c.slice(0, 0, end)));
        output.slice(-2, block.first, end).copy_(block.output);
      });
      const at::Tensor weighted = c * key_weights.unsqueeze(-1);
      const at::Tensor mapped = at::matmul(keys, part.of_queries(unrotated));
      part.of_queries(m.key_gram).add_(at::matmul(weighted.transpose(-2, -1), c));
      part.of_queries(m.key_cross).add_(at::matmul(mapped.transpose(-2, -1), weighted));
      part.of_queries(m.mean_gram).add_(at::matmul(mean.transpose(-2, -1), mean));
      part.of_queries(m.mean_cross).add_(at::matmul(output.transpose(-2, -1), mean));
    }
  }
  const double tokens = static_cast<double>(stream.fit().size()) * static_cast<double>(stream.tokens());
  for (at::Tensor* x : {&m.key_gram, &m.key_cross, &m.mean_gram, &m.mean_cross}) *x = fp64(*x) / tokens;
  return m;
}

LatentMaps latent_maps(const SourceHeads& heads, const RotaryMaps& rotary, const LatentBasis& basis,
                       const UpMapMoments& moments) {
  return assemble(heads, rotary, basis, refined(basis_key_up(rotary, basis), moments.key_gram, moments.key_cross),
                  refined(basis_value_up(heads, rotary, basis), moments.mean_gram, moments.mean_cross));
}

LatentMaps latent_maps(const SourceHeads& heads, const RotaryMaps& rotary, const LatentBasis& basis) {
  return assemble(heads, rotary, basis, basis_key_up(rotary, basis), basis_value_up(heads, rotary, basis));
}

}  // namespace cinch
