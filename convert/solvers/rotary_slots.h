// Which parts of the keys stay rotated when all KV heads share one rotary key of Dr numbers, and the maps to and from
// them (docs/conversion.md, the latent method, B).
//
// Planes of all KV heads (rotation.h) with nearly the same frequency form a group of f planes x K heads. Per group,
// keys and queries move to the complex eigenbasis of the query-weighted key covariance: T_K k and T_Q q with
// conj(T_Q q) . (T_K k) = conj(q) . k. A slot rotates one component of one group at one frequency w*; the components
// left over lose their rotation. Where a plane of frequency w is served at w* (0 without rotation), its queries are
// multiplied by the conjugate of the best constant for the lost phase, phi(w - w*) = E e^{-i (w - w*) lag}.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "convert/solvers/latent_moments.h"

namespace cinch {

/// Lags that slots serve: (1 - tail) as measured + tail * 1/(D+1) for D < context. Without the tail, contexts longer
/// than the calibration's collapse.
struct LagLaw {
  double tail = 0.25;
  int64_t context = 8192;
};

/// Adjacent planes first..first+planes-1 of every KV head.
struct PlaneGroup {
  int64_t first = 0, planes = 1;
};
/// How many planes around this rotated one a slot serves well: one from .07 radians per token, two from .004, else four
/// (measured at theta 1e5 and heads of 64), but never frequencies that lie further apart than those did.
int64_t planes_per_group(const HeadPlanes& planes, int64_t plane);
/// All planes in groups of that size, unrotated ones alone. Single planes lose nothing when rotated: `single` makes
/// every group one.
std::vector<PlaneGroup> plane_groups(const HeadPlanes& planes, bool single);
/// The same for a part of the planes.
void append_plane_groups(const HeadPlanes& planes, const PlaneGroup& part, bool single,
                         std::vector<PlaneGroup>& groups);

struct RotarySlot {
  int64_t group = 0;
  double frequency = 0;
};

/// Maps between the heads and their shared rotary and unrotated parts, fp64, internal coordinates. Components are pairs
/// (re, im) next to each other. N = K*D - Dr.
struct RotaryMaps {
  at::Tensor inv_freq;      // (Dr/2)
  at::Tensor rotary_key;    // (Dr, K*D)
  at::Tensor rest_key;      // (N, K*D)
  at::Tensor rotary_query;  // (H, Dr, D)
  at::Tensor rest_query;    // (H, N, D)
};

/// Components of complex planes as rows of a real map on heads: rows (m, n, P) complex -> (2m, n*D).
at::Tensor component_rows(const at::Tensor& rows);

/// What one layer has to say about slots.
class RotarySurvey {
 public:
  RotarySurvey(const SourceHeads& heads, const LatentMoments& moments, std::vector<PlaneGroup> groups,
               const LagLaw& law = {});

  const std::vector<PlaneGroup>& groups() const { return groups_; }
  int64_t components(int64_t group) const { return bases_[group].power.size(0); }
  /// Frequencies to try for a group, (4f + 1) fp64, evenly spread on a logarithmic scale; one for a single plane.
  at::Tensor candidates(int64_t group) const;
  /// Energy that each of these frequencies keeps, relative to the layer's output energy.
  at::Tensor kept(int64_t group, const at::Tensor& frequencies) const;
  /// What rotating each component at this frequency keeps that no rotation would lose, relative to the output energy.
  at::Tensor gains(int64_t group, double frequency) const;
  /// Maps of this layer for these slots: each group's best components.
  RotaryMaps maps(const std::vector<RotarySlot>& slots) const;
  /// Score energies under these slots, relative to the output energy.
  struct Energies {
    double lost = 0;     // with the rotation
    double rotated = 0;  // that rotated components keep
  };
  Energies energies(const std::vector<RotarySlot>& slots) const;

 private:
  struct Basis {
    at::Tensor key, query;   // (n, n) complex T_K and T_Q; columns are KV head x plane
    at::Tensor power;        // (n) E |T_K k|^2
    at::Tensor query_power;  // (H, f) weighted E |q|^2
    at::Tensor key_power;    // (K, f) E |k|^2
  };
  Basis basis(const PlaneGroup& group, const SourceHeads& heads, const LatentMoments& moments,
              const at::Tensor& query_power) const;
  /// phi at differences (N), (H, N) complex.
  at::Tensor phases(const at::Tensor& differences) const;
  at::Tensor group_frequencies(int64_t group) const;
  /// Energy of each component of a group, its planes weighted by (H, f) factors; (n), relative to the output energy.
  at::Tensor component_energies(int64_t group, const at::Tensor& factors) const;
  /// Rows (H, 2m, D) and (2m, K*D) of m components of a group, given as rows of its basis, (m, n) complex; factors (H,
  /// f) on the planes.
  at::Tensor query_rows(int64_t group, const at::Tensor& basis, const at::Tensor& factors) const;
  at::Tensor key_rows(int64_t group, const at::Tensor& basis) const;

  std::vector<PlaneGroup> groups_;
  std::vector<Basis> bases_;
  HeadPlanes planes_;
  int64_t kv_heads_ = 0;
  at::Tensor lags_;  // (H, context) summing to 1 per head
  double unit_ = 0;  // of energies: scale^2 / 2 over the output energy
};

/// Slots for a rotary key of `rotary_dim` numbers, fast ones first: per group the frequency that keeps most, then the
/// components that gain most, both summed over the layers. One layer: its own best; all layers of a model: the list
/// that they can share. Throws UsageError when rotary_dim is odd, negative or more than all keys have.
std::vector<RotarySlot> choose_slots(const std::vector<const RotarySurvey*>& layers, int64_t rotary_dim);

}  // namespace cinch
