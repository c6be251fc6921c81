// From the solvers' coordinates to a LatentAttention.
#pragma once

#include "attention/latent_attention.h"
#include "convert/solvers/latent_maps.h"

namespace cinch {

/// Attention of rank R with a rotary key of Dr numbers in place of `source`: per query head the source's own D query
/// rows meet the latent, and values have D numbers. `output_bias` may add an o_proj bias that the source lacks. The
/// frequencies are set by latent_weights.
AttentionSpec latent_spec(const AttentionSpec& source, int64_t rank, int64_t rotary_dim, bool output_bias);

struct LatentLayerWeights {
  AttentionSpec spec;
  LatentWeights weights;  // in the dtype of the source's
};
/// `heads` and `maps` in the source's order of heads.
LatentLayerWeights latent_weights(const GroupedQueryWeights& source, const SourceHeads& heads, const LatentMaps& maps);

}  // namespace cinch
