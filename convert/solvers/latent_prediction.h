// What a latent of given sizes will lose, from the moments alone: for choosing sizes before anything is converted.
// First order, before the maps are refitted: an order of layers and sizes, not a measurement.
#pragma once

#include <ATen/core/Tensor.h>

#include "convert/solvers/latent_fit.h"

namespace cinch {

/// Energies relative to the layer's output energy.
struct LatentPrediction {
  double lost_rotation = 0;  // scores of keys that are no longer rotated, or at another frequency
  double rotated = 0;        // scores of the shared rotary key
  at::Tensor dropped;        // (N+1) fp64, what a latent of r numbers leaves out
  at::Tensor spread;         // (N+1) fp64, variance of its r numbers

  /// Relative error of the attention output, with `noise` from a quantised cache (cache_noise).
  double error(int64_t rank, double noise = 0) const;
};

LatentPrediction predict_latent(const SourceHeads& heads, const LatentMoments& moments, const RotarySurvey& survey,
                                const std::vector<RotarySlot>& slots);
LatentPrediction predict_latent(const LatentMoments& moments, const RotarySurvey& survey,
                                const std::vector<RotarySlot>& slots, const LatentSpectrum& spectrum);

/// Variance that rounding to `bits` adds to a channel, relative to the channel's own: asymmetric over groups of 64
/// normal numbers, whose range is 4.74 standard deviations on average. 0 at 16 bits.
double cache_noise(int bits);

}  // namespace cinch
