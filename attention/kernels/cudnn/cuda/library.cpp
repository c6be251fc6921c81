#include "attention/kernels/cudnn/cuda/library.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace cinch::cudnn {
namespace {

constexpr const char* kLibrary = "libcudnn.so.9";
// The compiled frontend asks for what this version has, and 9.10 and 9.14 give wrong results for some masks.
constexpr size_t kOldest = 91501;

template <typename Function>
Function* function(void* from, const char* name) {
  void* const found = dlsym(from, name);
  if (found == nullptr) throw std::runtime_error(std::string(kLibrary) + " has no " + name);
  return reinterpret_cast<Function*>(found);
}

void check(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  const auto text = function<decltype(cudnnGetErrorString)>(library(), "cudnnGetErrorString");
  throw std::runtime_error(std::string(what) + ": " + text(status));
}

void* open_library() {
  void* const handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const reason = dlerror();
    throw std::runtime_error(std::string("cannot load ") + kLibrary + ": " +
                             (reason != nullptr ? reason : "unknown reason"));
  }
  const size_t version = function<decltype(cudnnGetVersion)>(handle, "cudnnGetVersion")();
  if (version < kOldest) {
    throw std::runtime_error(std::string(kLibrary) + " is version " + std::to_string(version) + ", older than " +
                             std::to_string(kOldest));
  }
  return handle;
}

/// Handles that nobody uses at present, by device. Leaked, as they are.
struct Pool {
  std::mutex lock;
  std::map<int32_t, std::vector<cudnnHandle_t>> free;
};

Pool& pool() {
  static Pool* const handles = new Pool;
  return *handles;
}

}  // namespace

void* library() {
  static void* const handle = open_library();
  return handle;
}

int64_t library_version() {
  return static_cast<int64_t>(function<decltype(cudnnGetVersion)>(library(), "cudnnGetVersion")());
}

int32_t device_capability(int32_t device) {
  // LibTorch has it loaded where there are devices at all.
  void* const runtime = dlopen("libcudart.so.13", RTLD_LAZY | RTLD_NOLOAD);
  if (runtime == nullptr) throw std::runtime_error("libcudart.so.13 is not loaded");
  const auto attribute = function<cudaError_t(int*, cudaDeviceAttr, int)>(runtime, "cudaDeviceGetAttribute");
  int major = 0, minor = 0;
  cudaError_t error = attribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = attribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) {
    throw std::runtime_error(function<const char*(cudaError_t)>(runtime, "cudaGetErrorString")(error));
  }
  return major * 10 + minor;
}

BorrowedHandle::BorrowedHandle(int32_t device) : device_(device) {
  {
    const std::lock_guard lock(pool().lock);
    std::vector<cudnnHandle_t>& free = pool().free[device];
    if (!free.empty()) {
      handle_ = free.back();
      free.pop_back();
      return;
    }
  }
  check(function<decltype(cudnnCreate)>(library(), "cudnnCreate")(&handle_), "cudnnCreate");
}

BorrowedHandle::~BorrowedHandle() {
  const std::lock_guard lock(pool().lock);
  pool().free[device_].push_back(handle_);
}

void BorrowedHandle::use_stream(void* stream) const {
  check(function<decltype(cudnnSetStream)>(library(), "cudnnSetStream")(handle_, static_cast<cudaStream_t>(stream)),
        "cudnnSetStream");
}

}  // namespace cinch::cudnn
