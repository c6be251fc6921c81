// A model with latent attention in the terms of the stock class DeepseekV3ForCausalLM, which Hugging Face transformers,
// vLLM and SGLang load and which llama.cpp knows as deepseek2. Their latent passes a norm that conversions do not have:
// it is made neutral by latents far below its epsilon. Rules and measurements: docs/export.md.
#pragma once

#include <memory>

#include "model/model_source.h"

namespace cinch {

struct StockLatentOptions {
  /// What the runtime's norm on the latent adds to the mean square.
  double latent_norm_eps = 1e-6;
  /// Of all other norms; 0: the model's own. Another one is made up for by rescaling the residual stream.
  double rms_norm_eps = 0;
  /// The small latent rows survive rounding to 16-bit floats of 5 exponent bits.
  bool split_scale = false;
  /// The class has biases for the projection to latent and rotary key and for the output.
  bool biases = true;
  /// The runtime stretches scores of linearly scaled positions as for YaRN (llama.cpp).
  bool stretches_linear = false;
  /// An explicit list of frequencies must not be misread by runtimes that ignore it.
  bool poison = false;
  int64_t least_nope_dim = 0;  // Dn is padded with zero rows up to this
  int64_t rank = 0;            // R is padded with zero rows up to this; 0: the largest of the layers
};

/// `source` as such a model, tensor by tensor, computed in fp64 when read (and of type F64 where it had to be
/// computed). What the class cannot hold is left out: runtime_rules.h says what that is. Throws UnsupportedError when
/// the layers are not all latent, or differ in what the class has one value for.
std::shared_ptr<ModelSource> as_stock_latent(std::shared_ptr<ModelSource> source, const StockLatentOptions& options);

}  // namespace cinch
