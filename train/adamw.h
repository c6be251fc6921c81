// AdamW (Loshchilov, Hutter, arXiv 1711.05101) through ATen's fused kernel, over pieces of flat buffers with rates of
// their own.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace cinch {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
};

/// A piece of the weights with its gradient and moments: tensors of one shape, type and device, changed in place.
struct AdamWPiece {
  at::Tensor value, gradient, mean, square;
  int rate = 0;      // which of the learning rates
  double scale = 1;  // of relative rates
  double weight_decay = 0;
};

class AdamW {
 public:
  AdamW(std::vector<AdamWPiece> pieces, const AdamWOptions& options);

  /// Sum of the squares of all gradients, a scalar tensor (nothing waits for the device).
  at::Tensor squared_norm() const;
  void scale_gradients(const at::Tensor& factor);
  /// One step at these learning rates, by the pieces' `rate`; with `relative` times their `scale`.
  void step(const std::vector<double>& learning_rates, bool relative = false);
  /// Forgets the moments.
  void reset();

  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  std::vector<AdamWPiece> pieces_;
  AdamWOptions options_;
  int64_t steps_ = 0;  // that the moments have seen
};

}  // namespace cinch
