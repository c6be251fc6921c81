// Training samples: windows of a token dataset, in the stateless order of TokenOrder.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "train/token_order.h"

namespace cinch {

class TokenSamples {
 public:
  /// Disjoint windows of `length` tokens, each with the next one as the last target. Throws UsageError when there are
  /// too few tokens for one, or the window is not positive.
  TokenSamples(std::vector<int64_t> ids, int64_t length, uint64_t seed);

  struct Batch {
    at::Tensor ids;      // (B, T) int64
    at::Tensor targets;  // (B, T) int64, the tokens after
  };
  /// `count` samples from `position` of the endless walk on.
  Batch batch(int64_t position, int64_t count) const;
  /// Tokens of such samples that are a target.
  int64_t targets(int64_t position, int64_t count) const;
  int64_t samples() const { return order_.samples(); }
  int64_t length() const { return length_; }
  /// XXH3-128 of the tokens.
  const std::string& digest() const { return digest_; }

 private:
  std::vector<int64_t> ids_;
  int64_t length_;
  TokenOrder order_;
  std::string digest_;
};

}  // namespace cinch
