#include "train/token_samples.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "core/digest.h"
#include "core/errors.h"
#include "text/token_dataset.h"
#include "train/linear_cross_entropy_kd.h"

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

std::vector<int64_t> checked_documents(std::vector<int64_t> documents, size_t tokens) {
  check_documents(documents, tokens, "training data");
  if (documents.size() < 2) documents.clear();
  return documents;
}

std::string digest_of(const std::vector<int64_t>& ids, const std::vector<int64_t>& documents) {
  Xxh3Digest digest;
  digest.update(std::as_bytes(std::span(ids)));
  digest.update(std::as_bytes(std::span(documents)));
  return digest.hex();
}

}  // namespace

TokenSamples::TokenSamples(std::vector<int64_t> ids, int64_t length, uint64_t seed, std::vector<int64_t> documents)
    : ids_(std::move(ids)),
      documents_(checked_documents(std::move(documents), ids_.size())),
      length_(length),
      order_(windows_in(ids_.size(), length), seed),
      digest_(digest_of(ids_, documents_)) {}

TokenSamples::Batch TokenSamples::batch(int64_t position, int64_t count) const {
  const auto options = at::TensorOptions(at::kLong);
  Batch batch{at::empty({count, length_}, options), at::empty({count, length_}, options), {}};
  if (!documents_.empty()) batch.documents = at::zeros({count, length_}, options);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = first_token(position + i);
    const int64_t* window = ids_.data() + first;
    std::copy_n(window, length_, batch.ids.mutable_data_ptr<int64_t>() + i * length_);
    int64_t* targets = batch.targets.mutable_data_ptr<int64_t>() + i * length_;
    std::copy_n(window + 1, length_, targets);
    // A start at the first token changes nothing; one behind the window takes its last target.
    for (auto next = std::upper_bound(documents_.begin(), documents_.end(), first);
         next != documents_.end() && *next <= first + length_; ++next) {
      const int64_t start = *next - first;
      targets[start - 1] = kIgnoredTarget;
      int64_t* documents = batch.documents.mutable_data_ptr<int64_t>() + i * length_;
      std::fill(documents + start, documents + length_, start);
    }
  }
  return batch;
}

int64_t TokenSamples::targets(int64_t position, int64_t count) const {
  int64_t ignored = 0;
  for (int64_t i = 0; i < count && !documents_.empty(); ++i) {
    const int64_t first = first_token(position + i);
    ignored += std::upper_bound(documents_.begin(), documents_.end(), first + length_) -
               std::upper_bound(documents_.begin(), documents_.end(), first);
  }
  return count * length_ - ignored;
}

}  // namespace cinch
