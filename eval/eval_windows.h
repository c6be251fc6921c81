// Which tokens a perplexity protocol feeds together and which of them it scores.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "eval/perplexity.h"

namespace cinch {

/// Tokens [begin, begin + length) of the text; positions scored_from .. length-1 of the window are scored (scored_from
/// >= 1).
struct EvalWindow {
  int64_t begin = 0;
  int64_t scored_from = 1;
};

/// Windows of one length, so that they can run as one batch.
struct EvalWindowGroup {
  int64_t length = 0;
  std::vector<EvalWindow> windows;
};

/// gptq: disjoint windows, remainder dropped, all but the first token scored. stride: windows start every S tokens,
/// only tokens not scored before; the last window ends with the text and may be shorter. llamacpp: disjoint windows,
/// positions after W/2 scored (llama.cpp's perplexity tool: `first = n_ctx / 2`, n_ctx - first - 1 tokens a window).
/// Throws UsageError when the text is shorter than one window.
std::vector<EvalWindowGroup> eval_windows(const PerplexityProtocol& protocol, int64_t n_tokens);

/// Windows [first, first + count) as ids (count, T) int64; `head` replaces the first token of each.
at::Tensor window_ids(const std::vector<int64_t>& ids, const EvalWindowGroup& group, int64_t first, int64_t count,
                      std::optional<int64_t> head);

}  // namespace cinch
