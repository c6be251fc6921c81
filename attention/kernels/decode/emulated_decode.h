// Decode steps and cache appends on the CPU by the kernels' own code, thread by thread in the warp emulator: slow, for
// tests.
#pragma once

#include "attention/kernels/decode/append_abi.h"
#include "attention/kernels/decode/decode_functions.h"
#include "attention/kernels/decode/tiling.h"

namespace cinch::decode {

/// Plans and runs `step`, whose arrays are in host memory; plan and scratch are its own. Throws std::runtime_error on
/// faults that the emulator finds and where no kernel covers the step.
void run_emulated(const CinchDecodeStep& step, const Multiprocessor& processor, const TilingWish& wish,
                  bool last_warp_first);

/// The same in parts: the split plan; then job.step with its own plan and scratch and job.tiling.
void run_emulated_plan(int32_t* plan, int32_t parts, const int32_t* lengths, int32_t batch, int32_t window,
                       bool last_warp_first);
void run_emulated_job(DecodeJob job, bool last_warp_first);

/// A cache append whose arrays are in host memory. Throws std::runtime_error like run_emulated.
void run_emulated(const CinchCacheAppend& append, bool last_warp_first);

}  // namespace cinch::decode

namespace cinch {

/// The kernels in the emulator, on host memory, as LibTorch's side calls them; streams are ignored. One small
/// multiprocessor, thread blocks of one warp, split plans of two parts.
const DecodeFunctions& emulated_decode_functions();

}  // namespace cinch
