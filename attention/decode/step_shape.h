// The shape of one layer's decode step as the kernels' C border takes it.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <optional>

#include "attention/attention_spec.h"
#include "attention/cache_format.h"
#include "attention/decode/decode_batch.h"
#include "attention/decode/decode_kernel.h"
#include "attention/kernels/decode/decode_abi.h"

namespace cinch {

struct StepRequest {
  int64_t sequences = 1;  // B
  at::ScalarType dtype = at::kBFloat16;
  CacheFormat format = CacheFormat::sixteen_bit;  // of latent attention
  DecodeKernel kernel = DecodeKernel::automatic;
  std::optional<c10::Device> tried_on = {};  // where a kernel must give right results in a trial (kernel_trial.h)
};

/// Everything but the pointers: contiguous queries and results, and the paged cache that a session makes. The value map
/// is part of the step where kernels take its width. Sizes of which no kernel is there are for cinch_decode_sizes to
/// refuse. Throws UnsupportedError for types other than bf16 and fp16.
CinchDecodeStep decode_step_shape(const AttentionSpec& spec, const StepRequest& request);

/// Numbers of a row of a latent cache of 16 bits: a multiple of 8.
int64_t padded_row(const AttentionSpec& spec);

/// What runs for steps of this shape on the current device, or why nothing does: `kernel` attend then. Throws
/// UnsupportedError where request.kernel is one that does not cover the shape. `functions` may be null.
struct KernelSearch {
  DecodeChoice choice;
  CinchDecodeStep step{};    // where choice.kernel is mma or sm90; its kernel is that one
  CinchDecodeSizes sizes{};  // the same
};
KernelSearch find_decode_kernel(const AttentionSpec& spec, const StepRequest& request,
                                const DecodeFunctions* functions);

}  // namespace cinch
