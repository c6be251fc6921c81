// libcinch_cudnn.so as LibTorch's side and `doctor` see it. Loaded at first use; without it, or without libcudnn, the
// rest runs on other kernels.
#pragma once

#include <filesystem>
#include <string>

#include "attention/kernels/cudnn/cudnn_abi.h"

namespace cinch {

struct CudnnFunctions {
  CinchCudnnVersion version;
  CinchCudnnCapability capability;
  CinchCudnnGetPlan plan;
  CinchCudnnRun run;
  CinchCudnnSave save;
  CinchCudnnLoad load;
};

/// Those of the plug-in beside the program. Throws Error saying what is missing: the plug-in, or the libcudnn it needs.
const CudnnFunctions& cudnn_functions();
/// Those of one file, for tests. Throws Error naming it.
CudnnFunctions cudnn_functions_of(const std::filesystem::path& plugin);

/// For `doctor`: "9.19.0". Throws Error as above.
std::string cudnn_version();

}  // namespace cinch
