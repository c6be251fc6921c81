// The prefill kernels as LibTorch's side calls them: from the CUDA plug-in, or in tests from the emulator.
#pragma once

#include "attention/kernels/prefill/prefill_abi.h"

namespace cinch {

struct PrefillFunctions {
  CinchPrefillRun forward;
  CinchPrefillRun backward;
};

/// Those of libcinch_cuda.so, or null where it is not there.
const PrefillFunctions* plugin_prefill_functions();

}  // namespace cinch
