// One decode step on the CPU by the kernels' own code, thread by thread in the warp emulator: slow, for tests.
#pragma once

#include "attention/kernels/decode/tiling.h"

namespace cinch::decode {

/// Plans and runs `step`, whose arrays are in host memory; plan and scratch are its own. Throws std::runtime_error on
/// faults that the emulator finds and where no kernel covers the step.
void run_emulated(const CinchDecodeStep& step, const Multiprocessor& processor, const TilingWish& wish,
                  bool last_warp_first);

}  // namespace cinch::decode
