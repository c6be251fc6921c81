#include "train/token_order.h"

#include <fmt/format.h>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr int kRounds = 6;

/// splitmix64's finaliser (Steele, Lea, Flood 2014).
uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

TokenOrder::TokenOrder(int64_t samples, uint64_t seed) : samples_(samples), seed_(seed), half_bits_(1) {
  if (samples <= 0) throw UsageError(fmt::format("an order of {} samples: there must be at least one", samples));
  while ((uint64_t{1} << (2 * half_bits_)) < static_cast<uint64_t>(samples)) ++half_bits_;
}

int64_t TokenOrder::sample(int64_t position) const {
  const auto epoch = static_cast<uint64_t>(position / samples_);
  auto index = static_cast<uint64_t>(position % samples_);
  // The network permutes a power of two; whoever lands outside walks on until he is back inside.
  do {
    index = permuted(index, epoch);
  } while (index >= static_cast<uint64_t>(samples_));
  return static_cast<int64_t>(index);
}

uint64_t TokenOrder::permuted(uint64_t index, uint64_t epoch) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = index >> half_bits_, right = index & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {  // a Feistel network
    const uint64_t key = mixed(seed_ ^ mixed(epoch * kRounds + round));
    const uint64_t next = left ^ (mixed(key ^ right) & mask);
    left = right;
    right = next;
  }
  return (left << half_bits_) | right;
}

}  // namespace cinch
