#include "train/planning/device_speed.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>

#include <chrono>
#include <fstream>
#include <string>

#include "core/errors.h"

namespace cinch {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

int64_t free_memory_bytes(c10::Device device) {
  if (!device.is_cpu()) return static_cast<int64_t>(at::accelerator::getMemoryInfo(device.index()).first);
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("MemAvailable:")) return std::stoll(line.substr(line.find_first_of("0123456789"))) * 1024;
  }
  throw ResourceError("/proc/meminfo does not say how much memory is available", "give --device-memory");
}

double matrix_product_flops(c10::Device device, c10::ScalarType type) {
  const at::NoGradGuard no_grad;
  const int64_t n = device.is_cpu() ? 1024 : 8192;
  const double work = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  const auto options = at::TensorOptions(type).device(device);
  const at::Tensor a = at::randn({n, n}, options), b = at::randn({n, n}, options);  // GPUs multiply ones faster
  at::Tensor c = at::empty({n, n}, options);
  const auto run = [&](int count) {
    const double start = now();
    for (int i = 0; i < count; ++i) at::mm_out(c, a, b);
    (void)c[0][0].item<float>();  // waits for a GPU
    return now() - start;
  };
  run(2);  // libraries load their kernels
  const double once = run(1);
  const int count = std::max(1, static_cast<int>(0.5 / once));
  return work * count / run(count);
}

}  // namespace cinch
