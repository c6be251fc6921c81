#include "attention/attention_weights.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/errors.h"

namespace cinch {

std::shared_ptr<const AttentionModule> make_attention(AttentionSpec spec, AttentionWeights weights) {
  auto* latent = std::get_if<LatentWeights>(&weights);
  if ((latent != nullptr) != (spec.kind == AttentionKind::latent)) {
    throw ShapeError(fmt::format("attention weights: the spec is {}, the weights are {}", kind_name(spec.kind),
                                 kind_name(latent != nullptr ? AttentionKind::latent : AttentionKind::grouped_query)));
  }
  if (latent != nullptr) return std::make_shared<LatentAttention>(std::move(spec), std::move(*latent));
  return std::make_shared<GroupedQueryAttention>(std::move(spec), std::move(std::get<GroupedQueryWeights>(weights)));
}

const GroupedQueryAttention& as_grouped_query(const AttentionModule& attention) {
  const auto* grouped = dynamic_cast<const GroupedQueryAttention*>(&attention);
  if (grouped == nullptr) {
    throw UnsupportedError("this step needs grouped-query attention, and the layer's attention is latent already",
                           "start from the model it was converted from");
  }
  return *grouped;
}

}  // namespace cinch
