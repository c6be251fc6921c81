// What all transforms to latent attention share: sizes, the order fit -> query refit -> W_O refit.
#pragma once

#include "convert/transform.h"
#include "convert/transforms/slot_lists.h"

namespace cinch {

/// The lags that a recipe's slots serve.
LagLaw lag_law(const ConversionRecipe& recipe);

const Transform& weighted_transform();
const Transform& balanced_pca_transform();
const Transform& weight_svd_transform();

}  // namespace cinch
