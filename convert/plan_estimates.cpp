#include "convert/plan_estimates.h"

#include <algorithm>
#include <map>

#include "convert/moment_file.h"
#include "convert/transform.h"

namespace cinch {
namespace {

constexpr int64_t kProgramBytes = int64_t{220} << 20;  // program, LibTorch and its thread pools
constexpr int64_t kBatchTokens = 4096;                 // of LayerStream
constexpr int64_t kLogitTokens = 128;                  // whose logits are held at a time
constexpr double kQ8Bits = 8.5;                        // Q8_0: blocks of 32 bytes with a 16-bit scale
constexpr double kFlopsPerThread = 2.5e10;             // fp32 GEMM-bound layers on one core
constexpr double kDiskBytesPerSecond = 4e8;            // read, digest and write

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

/// Numbers of the widest layer of the source.
int64_t largest_layer(const ModelSource& source) {
  std::map<int64_t, int64_t> sizes;
  for (const WeightSpec& weight : source.family().weights(source.config())) {
    if (weight.layer >= 0) sizes[weight.layer] += elements(weight.shape);
  }
  int64_t most = 0;
  for (const auto& [layer, size] : sizes) most = std::max(most, size);
  return most;
}

int64_t peak_memory(const ModelSource& source, const ConversionPlan& plan, bool calibrated) {
  const ModelConfig& config = plan.source;
  const int64_t window = plan.recipe.calibration_window;
  const int64_t tokens = calibrated ? plan.recipe.calibration_tokens : 4 * window;
  const int64_t streams = 2 * tokens * config.hidden_size * 4;
  const int64_t layer = largest_layer(source) * 4;
  int64_t solving = 0;
  for (size_t i = 0; calibrated && i < config.layers.size(); ++i) {
    if (!plan.converted[i]) continue;
    solving = std::max(solving,
                       transform(plan.recipe.method).solve_bytes(config.layers[i], plan.target.layers[i], plan.recipe));
  }
  const int64_t batch = std::min(kBatchTokens, tokens) * (3 * config.intermediate_size + 4 * config.hidden_size) * 4;
  // Embedding and head stay as stored, in the file's pages.
  const int64_t ends = (config.tie_word_embeddings ? 1 : 2) * config.vocab_size * config.hidden_size *
                       dtype_bits(output_dtype({}, config)) / 8;
  const int64_t logits = 8 * kLogitTokens * config.vocab_size * 4;
  return kProgramBytes + streams + layer + std::max({solving, batch, ends + logits});
}

double seconds(const ConversionPlan& plan, int threads, bool calibrated, double stored_bytes) {
  const ModelConfig& config = plan.source;
  const double tokens =
      static_cast<double>(calibrated ? plan.recipe.calibration_tokens : 4 * plan.recipe.calibration_window);
  const double embedding = static_cast<double>(config.vocab_size * config.hidden_size);
  const double forward = 2.0 * (static_cast<double>(plan.source_parameters) - embedding) * tokens;
  // Two streams; a calibrated method walks each layer's attention a few more times.
  const double passes = calibrated ? 6.0 : 2.0;
  double flops = passes * forward;
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    if (plan.converted[layer]) flops += transform(plan.recipe.method).solve_flops(config.layers[layer], plan.recipe);
  }
  return flops / (kFlopsPerThread * std::max(threads, 1)) + 3.0 * stored_bytes / kDiskBytesPerSecond;
}

}  // namespace

void estimate_costs(const ModelSource& source, const ModelWriterOptions& output, int threads, ConversionPlan& plan) {
  const Dtype dtype = output_dtype(output, source.config());
  const double bits = output.dtype == "q8_0" ? kQ8Bits : static_cast<double>(dtype_bits(dtype));
  double written = 0, derived = 0;
  for (const PlannedTensor& tensor : plan.tensors) {
    const double bytes = static_cast<double>(elements(tensor.shape)) * bits / 8;
    written += bytes;
    if (tensor.role == TensorRole::derived)
      derived += static_cast<double>(elements(tensor.shape) * dtype_bits(dtype)) / 8;
  }
  const bool calibrated = transform(plan.recipe.method).needs_calibration(plan.recipe);
  // The finished layers wait in the partial folder while the result is written.
  plan.disk_bytes = static_cast<int64_t>(written + derived);
  if (transform(plan.recipe.method).uses_moments(plan.recipe)) {
    const int64_t window = plan.recipe.calibration_window;
    plan.disk_bytes += static_cast<int64_t>(
        moment_bytes(plan.recipe.layers, plan.source.layers, plan.recipe.calibration_tokens / window, window));
  }
  plan.peak_memory_bytes = peak_memory(source, plan, calibrated);
  plan.seconds_estimate = seconds(plan, threads, calibrated, written);
  plan.break_even_tokens = written / static_cast<double>(plan.target.kv_bytes_per_token());
}

}  // namespace cinch
