#include "model/fused_gate.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/cuda_device.h"

namespace cinch {
namespace {

TEST(FusedGate, IsForCudaAlone) { EXPECT_FALSE(has_fused_gate(at::zeros({2, 3}))); }

class CudaFusedGate : public CudaTest {};

TEST_F(CudaFusedGate, EqualsThePlainOperations) {
  for (const auto& [type, tolerance] : {std::pair{at::kFloat, 1e-6}, {at::kBFloat16, 1e-2}, {at::kHalf, 2e-3}}) {
    for (const int64_t width : {64, 37}) {  // in packs of 16 bytes, and number by number
      at::manual_seed(8);
      const auto random = [&] { return (at::randn({5, width}) * 3).to(type).to(at::kCUDA); };
      const at::Tensor gate = random().requires_grad_(true), up = random().requires_grad_(true), given = random();
      ASSERT_TRUE(has_fused_gate(gate));
      const at::Tensor product = fused_gate(gate, up);
      product.backward(given);
      const auto exact = [](const at::Tensor& x) { return x.detach().to(at::kCPU, at::kDouble); };
      const at::Tensor a = exact(gate).requires_grad_(true), b = exact(up).requires_grad_(true);
      const at::Tensor expected = at::silu(a) * b;
      expected.backward(exact(given));
      for (const auto& [found, plain] : {std::pair{product, expected}, {gate.grad(), a.grad()}, {up.grad(), b.grad()}})
        EXPECT_LT(((exact(found) - plain).norm() / plain.norm()).item<double>(), tolerance) << at::toString(type);
    }
  }
}

}  // namespace
}  // namespace cinch
