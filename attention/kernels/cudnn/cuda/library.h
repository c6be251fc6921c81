// libcudnn and the handles that its kernels are started with.
#pragma once

#include <cudnn.h>

#include <cstdint>
#include <stdexcept>

namespace cinch::cudnn {

/// cuDNN has no kernel for the shape.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The loaded library (a dlopen handle). Throws std::runtime_error with the loader's reason; a later call tries again.
void* library();
/// 91900 is 9.19.0.
int64_t library_version();
/// 90 for compute capability 9.0. Throws std::runtime_error.
int32_t device_capability(int32_t device);

/// A handle of the device, of nobody else while this lives. Made where none is free, and never destroyed: at the
/// program's end CUDA may be gone before us.
class BorrowedHandle {
 public:
  /// `device` must be the current one.
  explicit BorrowedHandle(int32_t device);
  ~BorrowedHandle();
  BorrowedHandle(const BorrowedHandle&) = delete;
  BorrowedHandle& operator=(const BorrowedHandle&) = delete;

  cudnnHandle_t get() const { return handle_; }
  /// Where what is started with the handle goes.
  void use_stream(void* stream) const;

 private:
  const int32_t device_;
  cudnnHandle_t handle_ = nullptr;
};

}  // namespace cinch::cudnn
