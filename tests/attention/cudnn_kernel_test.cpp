// The cuDNN kernel without a device: which requests it declines and why, and what it says where cuDNN is not there.
// tests/attention/cudnn builds its plans, tests/attention/cuda_cudnn_test.cpp runs them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "attention/kernels/cudnn/cudnn_library.h"
#include "attention/kernels/cudnn/cudnn_rules.h"
#include "attention/kernels/kernels.h"
#include "core/errors.h"

namespace cinch {
namespace {

CinchCudnnShape shape_of(int64_t key_width, int64_t value_width, int32_t pass, int64_t queries = 1024,
                         int64_t keys = 1024) {
  CinchCudnnShape shape;
  std::memset(&shape, 0, sizeof shape);
  shape.batch = 2, shape.heads = 8, shape.kv_heads = 2;
  shape.queries = queries, shape.keys = keys;
  shape.key_width = key_width, shape.value_width = value_width;
  shape.pass = pass;
  return shape;
}

CinchCudnnShape deterministic(CinchCudnnShape shape) {
  shape.deterministic = 1;
  return shape;
}

TEST(CudnnKernel, RulesOfWidths) {
  for (const int32_t capability : {80, 86, 90, 100, 120}) {
    EXPECT_EQ(missing_in_cudnn(shape_of(128, 128, CINCH_CUDNN_BACKWARD), capability), "");
    EXPECT_EQ(missing_in_cudnn(shape_of(256, 192, CINCH_CUDNN_FORWARD_STATS), capability), "");
    EXPECT_EQ(missing_in_cudnn(shape_of(264, 64, CINCH_CUDNN_FORWARD), capability), "heads of more than 256");
    EXPECT_EQ(missing_in_cudnn(shape_of(64, 60, CINCH_CUDNN_FORWARD), capability), "heads that are no multiple of 8");
  }
  EXPECT_EQ(missing_in_cudnn(shape_of(192, 128, CINCH_CUDNN_BACKWARD), 90), "");
  EXPECT_EQ(missing_in_cudnn(shape_of(256, 256, CINCH_CUDNN_BACKWARD), 90), "");
  EXPECT_EQ(missing_in_cudnn(shape_of(192, 128, CINCH_CUDNN_BACKWARD), 100), "");
  EXPECT_EQ(missing_in_cudnn(shape_of(192, 128, CINCH_CUDNN_BACKWARD), 80),
            "gradients of heads of more than 128 on devices of compute capability 8.0");
  EXPECT_EQ(missing_in_cudnn(shape_of(160, 128, CINCH_CUDNN_BACKWARD), 100),
            "gradients of heads of more than 128 on devices of compute capability 10.0");
  EXPECT_EQ(missing_in_cudnn(shape_of(64, 64, CINCH_CUDNN_FORWARD), 75), "devices before compute capability 8.0");
}

TEST(CudnnKernel, RulesOfTokensAndHeads) {
  const auto forward = [](int64_t queries, int64_t keys) {
    return missing_in_cudnn(shape_of(64, 64, CINCH_CUDNN_FORWARD, queries, keys), 90);
  };
  EXPECT_EQ(forward(100, 300), "");
  EXPECT_EQ(forward(300, 100), "more queries than keys");
  EXPECT_EQ(forward(1, 300), "a single query");
  CinchCudnnShape shape = shape_of(64, 64, CINCH_CUDNN_FORWARD);
  shape.kv_heads = 3;
  EXPECT_EQ(missing_in_cudnn(shape, 90), "query heads that are no multiple of the key heads");

  shape = deterministic(shape_of(64, 64, CINCH_CUDNN_BACKWARD, 301, 301));
  EXPECT_EQ(missing_in_cudnn(shape, 90), "");  // 2 * 8 * 301
  shape.batch = 1, shape.heads = 9, shape.kv_heads = 3;
  EXPECT_EQ(missing_in_cudnn(shape, 90), "deterministic gradients of a number of rows that is no multiple of 4");
  shape.deterministic = 0;
  EXPECT_EQ(missing_in_cudnn(shape, 90), "");
}

TEST(CudnnKernel, WorkspaceGrowsWithTheSquareOnlyWhereDeterministic) {
  const auto bound = [](int64_t tokens, bool exact) {
    const CinchCudnnShape shape = shape_of(128, 128, CINCH_CUDNN_BACKWARD, tokens, tokens);
    return static_cast<double>(cudnn_workspace_bound(exact ? deterministic(shape) : shape));
  };
  EXPECT_NEAR(bound(32768, false) / bound(16384, false), 2.0, 0.01);
  EXPECT_GE(bound(16384, true), 2.0 * 8 * 16384 * 16384 * 2);
  EXPECT_GT(bound(32768, true) / bound(16384, true), 3.8);
  // Sizes that no product of 64 bits holds are bounded by one that does.
  EXPECT_GT(bound(int64_t{1} << 40, true), 1e18);
  EXPECT_LT(cudnn_workspace_bound(shape_of(128, 128, CINCH_CUDNN_FORWARD)), 65536U);
}

AttentionRequest request_of(at::ScalarType type, at::Device device) {
  AttentionRequest request;
  request.q = at::empty({1, 4, 16, 64}, at::TensorOptions(type).device(device));
  request.k = request.v = at::empty({1, 2, 16, 64}, at::TensorOptions(type).device(device));
  return request;
}

TEST(CudnnKernel, DeclinesTheCpu) { EXPECT_EQ(cudnn_kernel().missing(request_of(at::kBFloat16, at::kCPU)), "CPU"); }

TEST(CudnnKernel, StandsBeforeSdpa) {
  std::vector<std::string> names;
  for (const AttentionKernel* kernel : attention_kernels()) names.push_back(kernel->name());
  const auto cudnn = std::find(names.begin(), names.end(), "cudnn");
  ASSERT_NE(cudnn, names.end());
  EXPECT_NE(std::find(cudnn, names.end(), "sdpa"), names.end());
}

TEST(CudnnKernel, APlugInThatIsNotThereIsNamed) {
  try {
    cudnn_functions_of("/nowhere/libcinch_cudnn.so");
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("/nowhere/libcinch_cudnn.so"), std::string::npos) << error.what();
  }
}

TEST(CudnnKernel, SaysItsVersionOrWhatIsMissing) {
  try {
    EXPECT_EQ(cudnn_version().substr(0, 2), "9.");
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_TRUE(what.find("libcinch_cudnn.so") != std::string::npos || what.find("libcudnn") != std::string::npos)
        << what;
  }
}

}  // namespace
}  // namespace cinch
