// What all transforms to latent attention share: sizes, the order fit -> query refit -> W_O refit.
#pragma once

#include "convert/solvers/rotary_slots.h"
#include "convert/transform.h"

namespace cinch {

/// What a layer has to say about the slots of a rotary key of this width, as the weighted method asks it.
RotarySurvey rotary_survey(const SourceHeads& heads, const LatentMoments& moments, int64_t rope_dim,
                           const ConversionRecipe& recipe);

const Transform& weighted_transform();
const Transform& balanced_pca_transform();
const Transform& weight_svd_transform();

}  // namespace cinch
