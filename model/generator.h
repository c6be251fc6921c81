// Text generation with a KV cache: greedy, temperature, top-p; deterministic for a seed.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/decode_session.h"

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
};

/// `session` is of one empty sequence with room for the prompt and max_new_tokens. `on_token` (may be empty) sees each
/// new id as it comes; returning false stops.
GenerateResult generate(DecodeSession& session, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                        const std::function<bool(int64_t)>& on_token);
/// In a session of its own without decode kernels.
GenerateResult generate(const DecoderModel& model, const std::vector<int64_t>& prompt, const GenerateOptions& options,
                        const std::function<bool(int64_t)>& on_token);

}  // namespace cinch
