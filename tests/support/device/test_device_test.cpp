#include "tests/support/device/test_device.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cinch {
namespace {

using testing::HasSubstr;

at::Tensor there(const at::Tensor& x) { return x.to(test_device()); }
at::Tensor here(const at::Tensor& x) { return x.to(at::kCPU); }

class TestDevice : public testing::Test {
 protected:
  const at::TensorOptions options_ = at::TensorOptions(at::kFloat).device(test_device());
  const at::Tensor x_ = at::arange(12, at::kFloat).reshape({3, 4});
};

TEST_F(TestDevice, ComputesWhatTheCpuComputes) {
  const at::Tensor x = there(x_);
  EXPECT_EQ(x.device(), test_device());
  EXPECT_TRUE(at::equal(here(at::matmul(x, x.transpose(0, 1))), at::matmul(x_, x_.transpose(0, 1))));
  EXPECT_TRUE(at::equal(here(at::softmax(x, -1) + x.sum(0)), at::softmax(x_, -1) + x_.sum(0)));
  EXPECT_TRUE(at::equal(here(at::cat({x, at::ones({3, 1}, options_)}, 1)), at::cat({x_, at::ones({3, 1})}, 1)));
  EXPECT_TRUE(at::equal(here(at::arange(5, options_)), at::arange(5, at::kFloat)));
  EXPECT_EQ(x.sum().item<double>(), x_.sum().item<double>());
  EXPECT_EQ((x * at::scalar_tensor(2)).device(), test_device());
}

TEST_F(TestDevice, ViewsShareTheirMemory) {
  at::Tensor x = there(x_);
  x.select(0, 1).slice(0, 1, 3).fill_(-1);
  x.transpose(0, 1)[0].mul_(2);
  x.as_strided({2}, {4}, 7).zero_();
  at::Tensor expected = x_.clone();
  expected.select(0, 1).slice(0, 1, 3).fill_(-1);
  expected.transpose(0, 1)[0].mul_(2);
  expected.as_strided({2}, {4}, 7).zero_();
  EXPECT_TRUE(at::equal(here(x), expected));
}

TEST_F(TestDevice, ResultsAreResized) {
  at::Tensor out = at::empty({0}, options_);
  at::add_out(out, there(x_), there(x_));
  EXPECT_TRUE(at::equal(here(out), 2 * x_));
}

TEST_F(TestDevice, WorksInInferenceModeAndUnderAutograd) {
  {
    const c10::InferenceMode inference;
    EXPECT_TRUE(at::equal(here(there(x_).square_().t().contiguous()), x_.square().t()));
  }
  const at::Tensor weight = there(x_).requires_grad_();
  (weight * weight).sum().backward();
  EXPECT_TRUE(at::equal(here(weight.grad()), 2 * x_));
}

TEST_F(TestDevice, RefusesTensorsOfOtherDevices) {
  const at::Tensor x = there(x_);
  const at::Tensor row = at::ones({4});
  const at::Tensor index = at::zeros({2}, at::kLong);
  at::Tensor sum = at::zeros({4}), total = at::zeros({}), own = there(row);
  EXPECT_THROW(x + row, c10::Error);
  EXPECT_THROW(row * x, c10::Error);
  EXPECT_THROW(sum += x.sum(0), c10::Error);
  EXPECT_THROW(total += x.sum(), c10::Error);
  EXPECT_THROW(own += row, c10::Error);
  EXPECT_THROW(at::matmul(x, row), c10::Error);
  EXPECT_THROW(x.index_select(0, index), c10::Error);
  EXPECT_THROW(at::embedding(x, index), c10::Error);
  EXPECT_THROW(at::cat({x, x_}), c10::Error);
  EXPECT_THROW(at::where(x > 1, x, x_), c10::Error);
  EXPECT_THROW(x.masked_fill(x_ > 1, 0), c10::Error);
  try {
    x.index_select(0, index);
    FAIL();
  } catch (const c10::Error& error) {
    EXPECT_THAT(error.what_without_backtrace(), HasSubstr("argument index of aten::index_select"));
  }
}

using TestDeviceDeathTest = TestDevice;

TEST_F(TestDeviceDeathTest, ItsMemoryCannotBeReadDirectly) {
  const at::Tensor x = there(x_);
  const volatile float* data = x.const_data_ptr<float>();
  EXPECT_DEATH(static_cast<void>(data[0]), "");
}

}  // namespace
}  // namespace cinch
