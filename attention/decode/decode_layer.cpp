#include "attention/decode/decode_layer.h"

#include "attention/attention_weights.h"
#include "attention/decode/kernel_layer.h"
#include "attention/decode/plain_layer.h"
#include "attention/decode/step_shape.h"

namespace cinch {

ChosenDecodeLayer make_decode_layer(const AttentionModule& attention, DecodeBatch& batch,
                                    const DecodeLayerOptions& options) {
  const bool latent = attention.spec().kind == AttentionKind::latent;
  const StepRequest request{.sequences = batch.sizes().sequences,
                            .dtype = batch.sizes().dtype,
                            .format = latent ? options.format : CacheFormat::sixteen_bit,
                            .kernel = options.kernel,
                            .tried_on = batch.sizes().device};
  const KernelSearch found = find_decode_kernel(attention.spec(), request, batch.functions());
  if (found.choice.kernel == DecodeKernel::attend)
    return {std::make_unique<PlainLayer>(attention, batch, request.format), found.choice};
  if (latent) {
    const auto& module = dynamic_cast<const LatentAttention&>(attention);
    return {std::make_unique<LatentKernelLayer>(module, batch, found), found.choice};
  }
  return {std::make_unique<GroupedKernelLayer>(as_grouped_query(attention), batch, found), found.choice};
}

}  // namespace cinch
