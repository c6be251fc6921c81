// Elementwise kernels of the CUDA plug-in as LibTorch's side calls them: where the plug-in has one, on the stream that
// LibTorch computes on.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <mutex>
#include <string>

#include "core/cuda_abi.h"

namespace cinch {

/// Throws UnsupportedError for types that kernels do not take.
CinchElement element_of(at::ScalarType type);

/// The plug-in's function, or null: LibTorch's own CUDA libraries are enough to compute without it.
void* find_plugin_kernel(const std::string& function);

/// Where LibTorch puts the work of `device`: a cudaStream_t.
void* stream_of(at::Device device);

/// Throws ResourceError.
[[noreturn]] void throw_kernel_error(const char* name, at::Device device, const char* reason);

/// One that takes a plain struct: int32_t function(const Work*, void* stream, char* error, uint64_t error_size).
template <typename Work>
class PluginKernel {
 public:
  explicit PluginKernel(const char* function) : name_(function) {}

  /// On CUDA, for fp32, fp16 and bf16, with the plug-in there.
  bool takes(const at::Tensor& x) const {
    return x.is_cuda() && x.scalar_type() != at::kDouble && function() != nullptr;
  }
  /// Throws ResourceError when it cannot start.
  void run(const Work& work, at::Device device) const {
    char reason[256] = {};
    if (function()(&work, stream_of(device), reason, sizeof reason) != 0) throw_kernel_error(name_, device, reason);
  }

 private:
  using Function = int32_t (*)(const Work*, void*, char*, uint64_t);
  /// Looked for at first use: on the CPU nothing loads CUDA's libraries.
  Function function() const {
    std::call_once(looked_, [&] { function_ = reinterpret_cast<Function>(find_plugin_kernel(name_)); });
    return function_;
  }

  const char* name_;
  mutable std::once_flag looked_;
  mutable Function function_ = nullptr;
};

}  // namespace cinch
