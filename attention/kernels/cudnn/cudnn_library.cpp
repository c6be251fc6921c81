#include "attention/kernels/cudnn/cudnn_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <functional>

#include "core/errors.h"
#include "core/plugin.h"

namespace cinch {
namespace {

constexpr const char* kPlugin = "libcinch_cudnn.so";

CudnnFunctions functions_by(const std::function<void*(const std::string&)>& find) {
  return {reinterpret_cast<CinchCudnnVersion>(find("cinch_cudnn_version")),
          reinterpret_cast<CinchCudnnCapability>(find("cinch_cudnn_capability")),
          reinterpret_cast<CinchCudnnGetPlan>(find("cinch_cudnn_plan")),
          reinterpret_cast<CinchCudnnRun>(find("cinch_cudnn_run")),
          reinterpret_cast<CinchCudnnSave>(find("cinch_cudnn_save")),
          reinterpret_cast<CinchCudnnLoad>(find("cinch_cudnn_load"))};
}

int64_t version_of(const CudnnFunctions& functions) {
  int64_t version = 0;
  std::array<char, 512> reason{};
  if (functions.version(&version, reason.data(), reason.size()) != CINCH_CUDNN_OK) throw Error(reason.data());
  return version;
}

}  // namespace

const CudnnFunctions& cudnn_functions() {
  struct Found {
    CudnnFunctions functions{};
    std::string missing;
  };
  static const Found found = [] {
    Found it;
    try {
      it.functions = functions_by([](const std::string& name) { return find_in_plugin(kPlugin, name); });
      version_of(it.functions);  // loads libcudnn
    } catch (const Error& error) {
      it.missing = error.what();
    }
    return it;
  }();
  if (!found.missing.empty()) throw Error(found.missing);
  return found.functions;
}

CudnnFunctions cudnn_functions_of(const std::filesystem::path& plugin) {
  void* const handle = open_plugin(plugin);
  return functions_by([&](const std::string& name) {
    void* const found = dlsym(handle, name.c_str());
    if (found == nullptr) throw Error(fmt::format("{} has no {}", plugin.string(), name));
    return found;
  });
}

std::string cudnn_version() {
  const int64_t version = version_of(cudnn_functions());
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace cinch
