#include "convert/solvers/latent_prediction.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace cinch {
namespace {

constexpr double kRangeOf64 = 4.74;  // expected range of 64 standard normal numbers

/// Sums of the first 0..n numbers, (n+1).
at::Tensor running_sums(const at::Tensor& x) { return at::cat({at::zeros({1}, x.options()), x.cumsum(0)}); }

}  // namespace

double LatentPrediction::error(int64_t rank, double noise) const {
  const double energy = lost_rotation + dropped[rank].item<double>() +
                        (noise > 0 ? noise * (rotated + spread[rank].item<double>()) : 0.0);
  return std::sqrt(energy);
}

LatentPrediction predict_latent(const LatentMoments& moments, const RotarySurvey& survey,
                                const std::vector<RotarySlot>& slots, const LatentSpectrum& spectrum) {
  const RotarySurvey::Energies rotary = survey.energies(slots);
  const double unit = 1 / std::max(moments.output_energy, 1e-300);
  const at::Tensor kept = running_sums(spectrum.energy);
  return {.lost_rotation = rotary.lost,
          .rotated = rotary.rotated,
          .dropped = ((kept[-1] - kept) * unit).clamp_min(0),
          .spread = running_sums(spectrum.spread) * unit};
}

LatentPrediction predict_latent(const SourceHeads& heads, const LatentMoments& moments, const RotarySurvey& survey,
                                const std::vector<RotarySlot>& slots) {
  return predict_latent(moments, survey, slots, latent_spectrum(heads, moments, survey.maps(slots)));
}

double cache_noise(int bits) {
  if (bits >= 16) return 0;
  const double step = kRangeOf64 / (std::exp2(bits) - 1);
  return step * step / 12;
}

}  // namespace cinch
