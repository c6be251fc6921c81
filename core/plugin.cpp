#include "core/plugin.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>

#include "core/errors.h"
#include "core/program_paths.h"

namespace cinch {
namespace {

constexpr const char* kPluginName = "libcinch_cuda.so";
constexpr const char* kCpuHelp = "use --device cpu, which needs no CUDA";

void* open_beside_program(const std::string& name) {
  const std::filesystem::path folder = program_folder();
  for (const std::filesystem::path& candidate : std::array{folder / name, folder / "../lib" / name}) {
    std::error_code error;
    if (std::filesystem::exists(candidate, error)) return open_plugin(candidate.lexically_normal());
  }
  throw Error(fmt::format("{} is neither in {} nor in its sibling folder lib: this cinch was built without CUDA", name,
                          folder.string()),
              kCpuHelp);
}

void* find_function(void* plugin, const std::string& name, const std::string& function) {
  void* const found = dlsym(plugin, function.c_str());
  if (found == nullptr) {
    throw Error(fmt::format("{} has no {}: it belongs to another version of cinch", name, function),
                "install the program and its plug-ins together");
  }
  return found;
}

void* cuda_plugin() {
  static void* const handle = open_beside_program(kPluginName);
  return handle;
}

}  // namespace

void* open_plugin(const std::filesystem::path& file) {
  void* const handle = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    const char* const reason = dlerror();
    throw Error(fmt::format("cannot load {}: {}", file.string(), reason != nullptr ? reason : "unknown reason"),
                fmt::format("{}, or give the same LibTorch as the one that cinch was built with", kCpuHelp));
  }
  return handle;
}

void load_cuda_plugin() { cuda_plugin(); }

void* find_in_plugin(const std::string& file, const std::string& function) {
  return find_function(open_beside_program(file), file, function);
}

std::vector<CinchCudaDevice> describe_cuda_devices() {
  const auto describe =
      reinterpret_cast<CinchCudaDescribe>(find_function(cuda_plugin(), kPluginName, "cinch_cuda_describe"));
  std::vector<CinchCudaDevice> devices(64);
  std::array<char, 512> reason{};
  const int32_t count = describe(devices.data(), static_cast<int32_t>(devices.size()), reason.data(), reason.size());
  if (count <= 0)
    throw Error(fmt::format("no CUDA device: {}", count < 0 ? reason.data() : "the driver reports none"), kCpuHelp);
  devices.resize(static_cast<size_t>(count) < devices.size() ? static_cast<size_t>(count) : devices.size());
  return devices;
}

}  // namespace cinch
