// The device a command computes on. CUDA libraries are loaded here, and only when a CUDA device is asked for.
#pragma once

#include <c10/core/Device.h>

#include <string>

namespace cinch {

/// "cpu", "cuda" or "cuda:1". Loads the CUDA plug-in (libcinch_cuda.so beside the program or in ../lib), or LibTorch's
/// own CUDA libraries where the plug-in was not built. Throws UsageError on another name and ResourceError when there
/// is no such device.
c10::Device open_device(const std::string& name);

/// Loads the CUDA libraries if they are there; returns the number of devices and says in `why` what is missing when it
/// is 0.
int load_cuda(std::string& why);

}  // namespace cinch
