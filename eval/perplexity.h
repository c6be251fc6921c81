// Perplexity protocols (docs/protocols.md): each number carries its protocol id, window, token count and standard
// error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/json.h"

namespace cinch {

struct PerplexityProtocol {
  enum class Kind { gptq, stride, llamacpp } kind = Kind::gptq;
  int64_t window = 2048;
  int64_t stride = 0;      // stride protocol only
  int64_t max_tokens = 0;  // 0 = all
  std::string id() const;  // "ppl-gptq-2048", "ppl-stride-2048-512", "ppl-llamacpp-512"
};
/// Throws UsageError naming the known forms.
PerplexityProtocol parse_protocol(const std::string& text);

struct PerplexityResult {
  std::string protocol;
  double value = 0, stderr_value = 0, mean_nll = 0;
  int64_t tokens = 0, window = 0, windows = 0;
  Json to_json() const;
};

/// `stderr_value` is over windows by the delta method (perplexity x standard error of the mean loss); NaN with fewer
/// than two windows. Loss in nats; `window_tokens` scored tokens in each window, `nll` theirs in order. `tokens` of the
/// result counts scored tokens.
PerplexityResult perplexity_of(const PerplexityProtocol& protocol, const std::vector<double>& nll,
                               const std::vector<int64_t>& window_tokens);

struct FidelityReport {
  double kl_mean = 0, kl_stderr = 0, kl_median = 0, kl_p99 = 0, kl_max = 0;
  double top1_agreement = 0, top1_stderr = 0;
  double true_probability_change_mean = 0, true_probability_change_rms = 0;
  std::string yardstick;  // "Q8", "Q5", "Q3_K_M", "visible damage"
  int64_t tokens = 0;
  Json to_json() const;
};

}  // namespace cinch
