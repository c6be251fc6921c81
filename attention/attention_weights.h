// Weights of an attention layer of either kind, and the module they make.
#pragma once

#include <memory>
#include <variant>

#include "attention/grouped_query_attention.h"
#include "attention/latent_attention.h"

namespace cinch {

using AttentionWeights = std::variant<GroupedQueryWeights, LatentWeights>;

/// Throws ShapeError when the weights are not of the spec's kind or do not fit.
std::shared_ptr<const AttentionModule> make_attention(AttentionSpec spec, AttentionWeights weights);

/// The module as grouped-query attention. Throws UnsupportedError when it is latent.
const GroupedQueryAttention& as_grouped_query(const AttentionModule& attention);

}  // namespace cinch
