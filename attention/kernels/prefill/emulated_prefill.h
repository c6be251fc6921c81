// Prefill attention on the CPU by the kernels' own code, thread by thread in the warp emulator: slow, for tests.
#pragma once

#include "attention/kernels/prefill/prefill_functions.h"
#include "attention/kernels/prefill/prefill_tiling.h"

namespace cinch::prefill {

/// Run work whose arrays are in host memory. Throw std::runtime_error on faults that the emulator finds and where no
/// kernel covers the work.
void emulate_forward(const CinchPrefill& work, const Multiprocessor& processor, bool last_warp_first);
void emulate_backward(const CinchPrefill& work, const Multiprocessor& processor, bool last_warp_first);

/// The C functions of the plug-in, with arrays in host memory. On the device these are of shared memory as an H100's.
const PrefillFunctions& emulated_prefill_functions();

}  // namespace cinch::prefill
