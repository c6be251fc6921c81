// A libcuda.so.1 for machines without a GPU: enough of the driver for cuDNN to build plans, which compiles kernels with
// NVRTC and then loads them. Here loading keeps what was loaded for the test to look at; whatever needs a device
// answers that there is none.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kSuccess = 0;
constexpr int kNoDevice = 100;      // CUDA_ERROR_NO_DEVICE
constexpr int kInvalidImage = 200;  // CUDA_ERROR_INVALID_IMAGE
constexpr int kDriverVersion = 13000;
constexpr unsigned kCudaMachine = 190;  // EM_CUDA

int loaded_architecture = 0;
int loads = 0;

}  // namespace

extern "C" {

/// 90 when the last image that was loaded is for sm_90.
int stand_in_architecture() { return loaded_architecture; }
int stand_in_loads() { return loads; }

int cuDriverGetVersion(int* version) { return *version = kDriverVersion, kSuccess; }

int cuLibraryLoadData(void** library, const void* image, void*, void**, unsigned, void*, void**, unsigned) {
  const auto* bytes = static_cast<const unsigned char*>(image);
  uint16_t machine = 0;
  std::memcpy(&machine, bytes + 18, sizeof machine);  // e_machine of an ELF file
  if (std::memcmp(bytes,
                  "\x7f"
                  "ELF",
                  4) != 0 ||
      machine != kCudaMachine)
    return kInvalidImage;
  // Of e_flags, where CUDA 13's compilers write the architecture.
  loaded_architecture = bytes[49];
  ++loads;
  *library = &loads;
  return kSuccess;
}

int cuLibraryUnload(void*) { return kSuccess; }
int cuLibraryGetKernel(void** kernel, void*, const char*) { return *kernel = &loads, kSuccess; }
int cuKernelSetAttribute(int, int, void*, int) { return kSuccess; }
int cuKernelGetAttribute(int* value, int, void*, int) { return *value = 0, kSuccess; }

#define NO_DEVICE(name) \
  int name() { return kNoDevice; }
NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxGetDevice)
NO_DEVICE(cuCtxGetLimit)
NO_DEVICE(cuCtxPopCurrent)
NO_DEVICE(cuCtxPushCurrent)
NO_DEVICE(cuDeviceGet)
NO_DEVICE(cuDeviceGetAttribute)
NO_DEVICE(cuDeviceGetCount)
NO_DEVICE(cuDevicePrimaryCtxRelease)
NO_DEVICE(cuDevicePrimaryCtxReset)
NO_DEVICE(cuDevicePrimaryCtxRetain)
NO_DEVICE(cuFuncGetAttribute)
NO_DEVICE(cuFuncSetAttribute)
NO_DEVICE(cuGetErrorName)
NO_DEVICE(cuGetErrorString)
NO_DEVICE(cuInit)
NO_DEVICE(cuLaunchCooperativeKernel)
NO_DEVICE(cuLaunchKernel)
NO_DEVICE(cuLaunchKernelEx)
NO_DEVICE(cuLibraryLoadFromFile)
NO_DEVICE(cuLinkAddData)
NO_DEVICE(cuLinkAddData_v2)
NO_DEVICE(cuLinkAddFile_v2)
NO_DEVICE(cuLinkComplete)
NO_DEVICE(cuLinkCreate)
NO_DEVICE(cuLinkCreate_v2)
NO_DEVICE(cuLinkDestroy)
NO_DEVICE(cuMemcpyDtoH_v2)
NO_DEVICE(cuModuleGetFunction)
NO_DEVICE(cuModuleGetGlobal_v2)
NO_DEVICE(cuModuleLoadData)
NO_DEVICE(cuModuleLoadDataEx)
NO_DEVICE(cuModuleLoadFatBinary)
NO_DEVICE(cuModuleUnload)
NO_DEVICE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NO_DEVICE(cuOccupancyMaxPotentialClusterSize)
NO_DEVICE(cuStreamGetCtx)
NO_DEVICE(cuStreamSynchronize)
NO_DEVICE(cuTensorMapEncodeTiled)
}
