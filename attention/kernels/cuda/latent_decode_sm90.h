// Latent decode with TMA and wgmma on devices of compute capability 9.0: what it covers, and its launch.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "attention/kernels/cuda/latent_decode_sm90_body.h"
#include "attention/kernels/decode/decode_abi.h"

namespace cinch::sm90 {

/// Empty when this kernel covers the step's shape, else what it misses, in words. Reads no pointer; null pointers count
/// as not yet known, but for value_map and block_table, which say "without".
std::string latent_decode_missing(const CinchDecodeStep& step, int compute_major, int compute_minor);

/// Parts of the split plan that fill `multiprocessors`.
int latent_decode_parts(const CinchDecodeStep& step, int multiprocessors);

/// Launches every part of the plan on `stream`. Sequences of one part go to step.out and step.lse, where there is no
/// value_map; all others to `partial`, for the combine. step must be covered. Throws nothing; on failure `why` says
/// what was refused and by whom.
cudaError_t latent_decode_launch(const CinchDecodeStep& step, int parts, const PartialResults& partial,
                                 cudaStream_t stream, std::string& why);

#ifdef CINCH_WATCHDOG
/// Where a wait that never ends is reported: {1, block x, block y, thread, barrier's offset, parity}, in mapped memory.
cudaError_t latent_decode_watch(uint32_t* report);
#endif

}  // namespace cinch::sm90
