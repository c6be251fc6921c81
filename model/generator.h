// Text generation with a KV cache: greedy, temperature, top-p; deterministic for a seed.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/decoder_model.h"

namespace cinch {

struct GenerateOptions {
  int64_t max_new_tokens = 100;
  double temperature = 0.0;  // 0 = greedy
  double top_p = 1.0;
  uint64_t seed = 0;
  std::vector<int64_t> stop_ids;
};

struct GenerateResult {
  std::vector<int64_t> ids;  // new tokens only
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t kv_bytes_per_token = 0;  // measured from the caches
};

/// `on_token` (may be empty) sees each new id as it comes; returning false stops.
GenerateResult generate(const DecoderModel& model, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                        const std::function<bool(int64_t)>& on_token);

}  // namespace cinch
