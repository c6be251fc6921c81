// Launches of the compiled decode kernels; behind the C border, and for benchmarks that choose a tiling themselves.
#pragma once

#include "attention/kernels/decode/tiling.h"

namespace cinch::decode {

/// The split plan; see cinch_decode_plan. All return a cudaError_t as int, 0: done.
int launch_plan(int32_t* plan, int32_t parts, const int32_t* lengths, int32_t batch, int32_t window, void* stream);
/// One launch for all phases where the device can hold the whole grid at once, else one for each.
int launch_decode(const DecodeJob& job, void* stream);

// The kernels of one type each.
int launch_bf16(const DecodeJob& job, bool cooperative, void* stream);
int launch_fp16(const DecodeJob& job, bool cooperative, void* stream);
int launch_packed_bf16(const DecodeJob& job, bool cooperative, void* stream);
int launch_packed_fp16(const DecodeJob& job, bool cooperative, void* stream);

}  // namespace cinch::decode
