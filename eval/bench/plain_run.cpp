#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "core/errors.h"
#include "eval/bench/decode_run.h"

namespace cinch {
namespace {

/// Keys and values of one layer's cache: heads and widths.
struct CacheShape {
  int64_t heads, key_width, value_width;
};
CacheShape cache_shape(const AttentionSpec& spec) {
  if (spec.kind == AttentionKind::grouped_query) return {spec.n_kv_heads, spec.head_dim, spec.head_dim};
  return {1, spec.kv_elements(), 0};
}

int64_t whole_blocks(int64_t tokens) { return (tokens + 63) / 64 * 64; }
int64_t filled_tokens(const DecodeRunOptions& options) { return std::max<int64_t>(options.context - options.steps, 1); }

class PlainRun : public DecodeRun {
 public:
  PlainRun(const DecoderModel& model, const DecodeRunOptions& options)
      : model_(model), length_(std::max(options.context, filled_tokens(options) + options.steps)) {
    const auto tensor_options = at::TensorOptions(model.dtype()).device(model.device());
    for (const AttentionSpec& spec : model.config().layers) {
      const CacheShape shape = cache_shape(spec);
      const auto random = [&](int64_t width) {
        return at::empty({options.batch, shape.heads, filled_tokens(options), width}, tensor_options).normal_();
      };
      caches_.emplace_back().append(random(shape.key_width), random(shape.value_width), spec.window);
    }
    ids_ =
        at::randint(0, model.config().vocab_size, {options.batch, 1}, at::TensorOptions(at::kLong)).to(model.device());
  }

  void step() override {
    const at::NoGradGuard no_grad;
    ids_ = model_.forward(ids_, &caches_, length_).argmax(-1);
  }
  std::string kernel() const override { return name_of(DecodeKernel::attend); }
  int64_t cache_bytes_allocated() const override { return bytes_of(caches_, ids_.size(0)); }

 private:
  static int64_t bytes_of(const std::vector<KvCache>& caches, int64_t batch) {
    int64_t bytes = 0;
    for (const KvCache& cache : caches) bytes += cache.bytes_per_token() * cache.tokens() * batch;
    return bytes;
  }

  const DecoderModel& model_;
  int64_t length_;
  std::vector<KvCache> caches_;
  at::Tensor ids_;  // (B, 1)
};

}  // namespace

std::unique_ptr<DecodeRun> plain_run(const DecoderModel& model, const DecodeRunOptions& options) {
  if (options.cache_format != CacheFormat::sixteen_bit) {
    throw UnsupportedError(
        fmt::format("a cache of {} without decode kernels would be emulated", name_of(options.cache_format)),
        "--device cuda, or --kv-bits 16");
  }
  const at::NoGradGuard no_grad;
  return std::make_unique<PlainRun>(model, options);
}

int64_t plain_cache_bytes(const ModelConfig& config, int64_t element_bytes, const DecodeRunOptions& options) {
  const int64_t filled = filled_tokens(options), capacity = whole_blocks(filled);
  const bool grows = filled + options.steps > capacity;
  int64_t bytes = 0, largest = 0;
  for (const AttentionSpec& spec : config.layers) {
    const int64_t token = spec.kv_elements() * element_bytes * options.batch;
    bytes += (grows ? whole_blocks(2 * filled) : capacity) * token;
    // The numbers that a layer is filled with, or what it held before it grew.
    largest = std::max(largest, capacity * token);
  }
  return bytes + largest;
}

}  // namespace cinch
