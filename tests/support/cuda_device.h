// For suites named Cuda*: skipped, visibly, where no CUDA device can be used.
#pragma once

#include <ATen/detail/CUDAHooksInterface.h>
#include <gtest/gtest.h>

#include <exception>
#include <string>

#include "core/plugin.h"

namespace cinch {

/// Empty when there is a CUDA device, else why there is none.
inline std::string missing_cuda() {
  try {
    load_cuda_plugin();
  } catch (const std::exception& error) {
    return error.what();
  }
  return at::detail::getCUDAHooks().deviceCount() > 0 ? "" : "the CUDA driver reports no device";
}

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    static const std::string missing = missing_cuda();
    if (!missing.empty()) GTEST_SKIP() << missing;
  }
};

}  // namespace cinch
