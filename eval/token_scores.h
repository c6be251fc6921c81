// What one batch of logit rows says about the true next tokens, and about the distance to a reference's logits.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "eval/perplexity.h"

namespace cinch {

/// One entry per scored token. The reference's fields stay empty without a reference.
struct TokenScores {
  std::vector<double> nll;  // -log p(true token), nats
  std::vector<double> reference_nll;
  std::vector<double> kl;              // KL(reference || model), nats
  std::vector<uint8_t> agrees;         // the model's most likely token is the reference's
  std::vector<int64_t> window_tokens;  // scored tokens of each window, in the order of the entries

  /// Appends the rows of `logits` (N, V) fp32 against `targets` (N) int64; `reference` is (N, V) or undefined. Both are
  /// overwritten. Softmax and sums as fp32 exponentials added up in fp64.
  void add_rows(at::Tensor& logits, at::Tensor& reference, const at::Tensor& targets);
};

/// Throws nothing; `scores` holds a reference's fields and at least one token.
FidelityReport fidelity_of(const TokenScores& scores);

/// Mean of `values` and its standard error over windows (ratio estimator: windows may score different numbers of
/// tokens); the error is NaN with fewer than two windows.
struct WindowMean {
  double mean = 0, standard_error = 0;
};
WindowMean mean_over_windows(const std::vector<double>& values, const std::vector<int64_t>& window_tokens);

/// The quantisation of a common runtime whose KL divergence is of this size: "Q8", "Q5", "Q3_K_M", "visible damage".
std::string yardstick_of(double kl_mean);

}  // namespace cinch
