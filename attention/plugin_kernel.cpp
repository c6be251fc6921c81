#include "attention/plugin_kernel.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <fmt/format.h>

#include "core/errors.h"
#include "core/plugin.h"

namespace cinch {

CinchElement element_of(at::ScalarType type) {
  if (type == at::kFloat) return kCinchF32;
  if (type == at::kHalf) return kCinchF16;
  if (type == at::kBFloat16) return kCinchBF16;
  throw UnsupportedError(fmt::format("no kernel takes numbers of type {}", at::toString(type)));
}

void* find_plugin_kernel(const std::string& function) {
  try {
    return find_in_plugin("libcinch_cuda.so", function);
  } catch (const Error&) {
    return nullptr;
  }
}

void* stream_of(at::Device device) { return at::accelerator::getCurrentStream(device.index()).native_handle(); }

void throw_kernel_error(const char* name, at::Device device, const char* reason) {
  throw ResourceError(fmt::format("{} cannot run on {}: {}", name, device.str(), reason));
}

}  // namespace cinch
