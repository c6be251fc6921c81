// Ridge refit of a latent attention's o_proj on the stream of the converted model (docs/conversion.md, the latent
// method, D).
#pragma once

#include <vector>

#include "convert/solvers/latent_maps.h"

namespace cinch {

struct LatentOutputOptions {
  std::vector<double> lambdas = {1e-2};  // of the features' mean power; the best on the validation windows is taken
  bool bias = true;                      // the target has an o_proj bias
  bool follow_drift = false;             // also correct h - h', tokens weighted by 1/|h + y|^2
};

struct LatentOutputRefit {
  double lambda = 0;  // chosen; 0: the current o_proj was best
  double loss = 0;    // squared residual on the windows that judged, over that of the target
};

/// Fits o_proj (and its bias) of `maps` to the original attention output y on the original stream h, from the converted
/// head outputs on the converted stream h'. Without `follow_drift` the drift h - h' that the converted prefix has left
/// is not chased: with the few features of a latent that overfits.
LatentOutputRefit refit_latent_output(const LayerProblem& problem, const HeadStream& stream, const SourceHeads& heads,
                                      const LatentOutputOptions& options, LatentMaps& maps);

/// |y' - y|^2 / |y|^2 over the tokens of these windows but the first of each, on the original stream.
double latent_output_error(const LayerProblem& problem, const HeadStream& stream, const SourceHeads& heads,
                           const LatentMaps& maps, const std::vector<int64_t>& windows);

}  // namespace cinch
