// The decode kernels as LibTorch's side calls them: from the CUDA plug-in, or in tests from the emulator.
#pragma once

#include "attention/kernels/decode/append_abi.h"
#include "attention/kernels/decode/decode_abi.h"

namespace cinch {

struct DecodeFunctions {
  CinchDecodeGetSizes sizes;
  CinchDecodePlan plan;
  CinchDecodeRun run;
  CinchCacheAppendRun append;
};

/// Those of libcinch_cuda.so, or null where it is not there.
const DecodeFunctions* plugin_decode_functions();

}  // namespace cinch
