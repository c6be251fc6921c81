#include "train/token_samples.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <span>

#include "core/digest.h"
#include "core/errors.h"

namespace cinch {
namespace {

int64_t windows_in(size_t tokens, int64_t length) {
  if (length <= 0) throw UsageError(fmt::format("training windows of {} tokens: there must be at least one", length));
  const int64_t count = (static_cast<int64_t>(tokens) - 1) / length;
  if (tokens < 2 || count < 1) {
    throw UsageError(
        fmt::format("{} tokens are too few for one training window of {} and its last target", tokens, length),
        "give more text, or a shorter window");
  }
  return count;
}

}  // namespace

TokenSamples::TokenSamples(std::vector<int64_t> ids, int64_t length, uint64_t seed)
    : ids_(std::move(ids)),
      length_(length),
      order_(windows_in(ids_.size(), length), seed),
      digest_(xxh3_hex(std::as_bytes(std::span(ids_)))) {}

TokenSamples::Batch TokenSamples::batch(int64_t position, int64_t count) const {
  std::vector<at::Tensor> inputs, targets;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = order_.sample(position + i) * length_;
    const auto window =
        at::tensor(at::ArrayRef<int64_t>(ids_.data() + first, static_cast<size_t>(length_ + 1)), at::kLong);
    inputs.push_back(window.slice(0, 0, length_));
    targets.push_back(window.slice(0, 1));
  }
  return {at::stack(inputs), at::stack(targets)};
}

int64_t TokenSamples::targets(int64_t /*position*/, int64_t count) const { return count * length_; }

}  // namespace cinch
