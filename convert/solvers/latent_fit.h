// The latent and the maps out of it, in closed form (docs/conversion.md, the latent method, C).
#pragma once

#include <ATen/core/Tensor.h>

#include "convert/solvers/latent_maps.h"
#include "convert/solvers/latent_moments.h"
#include "convert/solvers/rotary_slots.h"

namespace cinch {

/// c = encode z and z_N = [rest_key k; v] ~ decode c, fp64. N = 2KD - Dr.
struct LatentBasis {
  at::Tensor encode;                            // (R, 2KD)
  at::Tensor decode;                            // (N, R)
  double kept_energy_k = 1, kept_energy_v = 1;  // shares of the weighted energies
};

/// Principal directions of z_N for the outputs, most important first: those under the metric diag(T_K^2, T_V^2) with
///   T_K^2 = scale^2 sum_h B_h^T Q_h B_h,  T_V^2 = blockdiag over KV heads of sum_h kappa_h W_O,h^T W_O,h,
/// B_h^T = rest_query, Q_h = moments.query, kappa_h = tr(M_h Cov o_h) / tr(M_h Cov v): averaging over keys takes most
/// of an error of a value away.
struct LatentSpectrum {
  int64_t keys = 0;    // of z_N, the first numbers
  at::Tensor energy;   // (N) E (output error) that a direction is worth, descending
  at::Tensor spread;   // (N) the same without its mean
  at::Tensor vectors;  // (N, N) columns, orthonormal under the metric
  at::Tensor mapped;   // (N, 2KD) T Z
  at::Tensor inverse;  // (N, N) T^-1
  at::Tensor gram;     // (N, N) T Z G Z^T T
};
LatentSpectrum latent_spectrum(const SourceHeads& heads, const LatentMoments& moments, const RotaryMaps& rotary);
/// The first R of them. Throws UsageError unless 0 < rank <= N.
LatentBasis latent_basis(const LatentSpectrum& spectrum, int64_t rank);

/// Moments for the maps out of a latent, fp64, means over tokens; c_bar and v_bar are averages under a head's softmax,
/// w the weights of latent_moments.h. Much smaller than the moments of z: they are taken once the latent is known.
struct UpMapMoments {
  at::Tensor key_gram;    // (H, R, R) E (sum_t w_ts) c_s c_s^T
  at::Tensor key_cross;   // (H, D, R) E (sum_t w_ts) (B_h rest_key k_s) c_s^T
  at::Tensor mean_gram;   // (H, R, R) E c_bar c_bar^T
  at::Tensor mean_cross;  // (H, D, R) E v_bar c_bar^T
};
UpMapMoments up_map_moments(const HeadStream& stream, const SourceHeads& heads, const RotaryMaps& rotary,
                            const LatentBasis& basis);

/// Least squares per query head: keys weighted as the softmax will weigh their errors, values averaged as it averages
/// them. Solutions are held (ridge of 1e-6) to those of the basis itself, which are exact at full rank.
LatentMaps latent_maps(const SourceHeads& heads, const RotaryMaps& rotary, const LatentBasis& basis,
                       const UpMapMoments& moments);
/// The basis itself as up-maps: what principal components alone give.
LatentMaps latent_maps(const SourceHeads& heads, const RotaryMaps& rotary, const LatentBasis& basis);

}  // namespace cinch
