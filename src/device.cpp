#include "src/device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <filesystem>

#include "core/errors.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

fs::path folder_of_libtorch() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&at::get_num_threads), &info) == 0 || info.dli_fname == nullptr) return {};
  return fs::path(info.dli_fname).parent_path();
}

fs::path folder_of_program() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::path() : program.parent_path();
}

bool load_library(const fs::path& path, std::string& why) {
  dlerror();
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return true;
  const char* reason = dlerror();
  why = reason != nullptr ? reason : path.string();
  return false;
}

bool load_libraries(std::string& why) {
  const fs::path program = folder_of_program();
  for (const fs::path& plugin : std::array{program / "libcinch_cuda.so", program / "../lib/libcinch_cuda.so"}) {
    std::error_code error;
    if (fs::exists(plugin, error)) return load_library(plugin, why);
  }
  return load_library(folder_of_libtorch() / "libtorch_cuda.so", why);
}

}  // namespace

int load_cuda(std::string& why) {
  static std::string reason;
  static const bool loaded = load_libraries(reason);
  if (!loaded) {
    why = reason;
    return 0;
  }
  const int count = at::detail::getCUDAHooks().deviceCount();
  if (count == 0) why = "the CUDA driver reports no device";
  return count;
}

c10::Device open_device(const std::string& name) {
  if (name == "cpu") return c10::Device(c10::kCPU);
  int index = 0;
  const bool numbered = name.starts_with("cuda:") && name.size() > 5 && name.size() < 9 &&
                        name.find_first_not_of("0123456789", 5) == std::string::npos;
  if (numbered) {
    index = std::stoi(name.substr(5));
  } else if (name != "cuda") {
    throw UsageError(fmt::format("--device: unknown device \"{}\"", name), "use cpu, cuda or cuda:N");
  }
  std::string why;
  const int count = load_cuda(why);
  if (count == 0) {
    throw ResourceError(fmt::format("--device {}: no CUDA device can be used: {}", name, why),
                        "`cinch doctor` shows what this machine can run; --device cpu works everywhere");
  }
  if (index >= count) {
    throw ResourceError(fmt::format("--device {}: this machine has {} CUDA device(s), numbered from 0", name, count),
                        fmt::format("use cuda:0 to cuda:{}", count - 1));
  }
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

}  // namespace cinch
