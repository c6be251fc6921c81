#include "model/generator.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "core/progress.h"

namespace cinch {
namespace {

constexpr int64_t kPrefillChunk = 512;

/// `logits` (V). Greedy at temperature 0, else from the smallest set of tokens whose probability reaches top_p.
int64_t pick(const at::Tensor& logits, const GenerateOptions& options, std::mt19937_64& random) {
  if (options.temperature <= 0) return logits.argmax().item<int64_t>();
  const at::Tensor probabilities = at::softmax(logits.to(at::kCPU, at::kDouble) / options.temperature, 0);
  const auto [sorted, order] = probabilities.sort(/*stable=*/true, 0, /*descending=*/true);
  const double* p = sorted.const_data_ptr<double>();
  int64_t kept = 0;
  double mass = 0;
  while (kept < sorted.numel() && (kept == 0 || mass < options.top_p)) mass += p[kept++];
  // 53 random bits, so that the draw does not depend on the standard library's distribution.
  double left = static_cast<double>(random() >> 11) * 0x1p-53 * mass;
  int64_t choice = 0;
  while (choice + 1 < kept && left >= p[choice]) left -= p[choice++];
  return order[choice].item<int64_t>();
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

GenerateResult generate(const DecoderModel& model, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                        const std::function<bool(int64_t)>& on_token) {
  GenerateResult result;
  std::vector<KvCache> caches(static_cast<size_t>(model.config().n_layers));
  std::mt19937_64 random(options.seed);
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  // Length-dependent RoPE is chosen once for everything that will be generated, so cached keys stay valid.
  const int64_t length = prompt_tokens + options.max_new_tokens;
  const auto start = std::chrono::steady_clock::now();
  at::Tensor logits;
  for (int64_t first = 0; first < prompt_tokens; first += kPrefillChunk) {
    const int64_t count = std::min(kPrefillChunk, prompt_tokens - first);
    const at::Tensor ids =
        at::tensor(std::vector<int64_t>(prompt.begin() + first, prompt.begin() + first + count), at::kLong)
            .unsqueeze(0);
    logits = model.forward(ids, &caches, length);
  }
  result.prefill_seconds = seconds_since(start);
  const auto decode_start = std::chrono::steady_clock::now();
  while (static_cast<int64_t>(result.ids.size()) < options.max_new_tokens && !interrupt_requested()) {
    const int64_t id = pick(logits[0][-1], options, random);
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) break;
    result.ids.push_back(id);
    if (on_token && !on_token(id)) break;
    if (static_cast<int64_t>(result.ids.size()) < options.max_new_tokens) {
      logits = model.forward(at::full({1, 1}, id, at::TensorOptions(at::kLong)), &caches, length);
    }
  }
  result.decode_seconds = seconds_since(decode_start);
  for (const KvCache& cache : caches) result.kv_bytes_per_token += cache.bytes_per_token();
  return result;
}

}  // namespace cinch
