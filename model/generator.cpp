#include "model/generator.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "core/progress.h"

namespace cinch {
namespace {

/// `logits` (V). From the smallest set of tokens whose probability reaches top_p.
int64_t draw(const at::Tensor& logits, const GenerateOptions& options, std::mt19937_64& random) {
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

GenerateResult generate(DecodeSession& session, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                        const std::function<bool(int64_t)>& on_token) {
  GenerateResult result;
  std::mt19937_64 random(options.seed);
  const bool greedy = options.temperature <= 0;
  const auto start = std::chrono::steady_clock::now();
  at::Tensor logits = session.prefill({prompt});
  // Reading an id waits for the device: times are those of work that is done.
  int64_t id = greedy ? session.next_ids()[0] : draw(logits[0], options, random);
  result.prefill_seconds = seconds_since(start);
  const auto decode_start = std::chrono::steady_clock::now();
  while (static_cast<int64_t>(result.ids.size()) < options.max_new_tokens && !interrupt_requested()) {
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) break;
    result.ids.push_back(id);
    if (on_token && !on_token(id)) break;
    if (static_cast<int64_t>(result.ids.size()) == options.max_new_tokens) break;
    if (greedy) {
      session.step_greedy();
      id = session.next_ids()[0];
    } else {
      logits = session.step(at::full({1}, id, at::kLong));
      id = draw(logits[0], options, random);
    }
  }
  result.decode_seconds = seconds_since(decode_start);
  return result;
}

GenerateResult generate(const DecoderModel& model, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                        const std::function<bool(int64_t)>& on_token) {
  const auto tokens = static_cast<int64_t>(prompt.size()) + options.max_new_tokens;
  DecodeSession session(model, {.max_tokens = tokens}, nullptr);
  return generate(session, prompt, options, on_token);
}

}  // namespace cinch
