// In which order the samples of a data set are seen: a permutation per epoch that is computed, not stored, so that any
// sample of any step is known without the ones before it, whatever the number of processes. No torch.
#pragma once

#include <cstdint>

namespace cinch {

class TokenOrder {
 public:
  /// Throws UsageError unless samples > 0.
  TokenOrder(int64_t samples, uint64_t seed);

  int64_t samples() const { return samples_; }
  /// The sample at `position` of an endless walk: position / samples() is the epoch, and each epoch visits every sample
  /// once, in an order of its own.
  int64_t sample(int64_t position) const;

 private:
  uint64_t permuted(uint64_t index, uint64_t epoch) const;

  int64_t samples_;
  uint64_t seed_;
  int half_bits_;  // of the smallest square power of two that holds all samples
};

}  // namespace cinch
