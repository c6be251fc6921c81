// Loads libcinch_cuda.so, the part of cinch that needs CUDA. The program itself links no CUDA library: it starts fast
// and runs without a driver.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/cuda_abi.h"

namespace cinch {

/// Opens the plug-in once per process, with RTLD_GLOBAL, so that LibTorch's CUDA devices exist afterwards. Call it
/// before anything asks LibTorch about CUDA: LibTorch remembers the first answer. Looks beside the program, then in
/// ../lib. Throws Error when it is absent or cannot be loaded.
void load_cuda_plugin();

/// The same for one file; throws Error naming it. For tests and for callers with a plug-in of their own.
void* open_plugin(const std::filesystem::path& file);

/// A function of another plug-in that lies beside it, opened once. Throws Error when there is no such file or function.
void* find_in_plugin(const std::string& file, const std::string& function);

/// Loads the plug-in and describes every CUDA device, with its copy bandwidth measured. Throws Error when there is no
/// driver or no device.
std::vector<CinchCudaDevice> describe_cuda_devices();

}  // namespace cinch
