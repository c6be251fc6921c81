#include "eval/eval_windows.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "core/errors.h"

namespace cinch {
namespace {

std::vector<EvalWindowGroup> disjoint(int64_t n_tokens, int64_t length, int64_t scored_from) {
  EvalWindowGroup group{.length = length, .windows = {}};
  for (int64_t begin = 0; begin + length <= n_tokens; begin += length) group.windows.push_back({begin, scored_from});
  return {group};
}

std::vector<EvalWindowGroup> strided(int64_t n_tokens, int64_t length, int64_t stride) {
  EvalWindowGroup full{.length = length, .windows = {}};
  int64_t scored = 0;
  for (int64_t begin = 0;; begin += stride) {
    const int64_t end = std::min(begin + length, n_tokens);
    const EvalWindow window{begin, std::max<int64_t>(scored - begin, 1)};
    scored = end;
    if (end - begin == length) {
      full.windows.push_back(window);
      if (end == n_tokens) return {full};
    } else {
      return {full, EvalWindowGroup{.length = end - begin, .windows = {window}}};
    }
  }
}

}  // namespace

std::vector<EvalWindowGroup> eval_windows(const PerplexityProtocol& protocol, int64_t n_tokens) {
  if (n_tokens < protocol.window) {
    throw UsageError(fmt::format("{}: the text has {} tokens, fewer than one window of {}", protocol.id(), n_tokens,
                                 protocol.window),
                     "give a longer text or a smaller --window");
  }
  switch (protocol.kind) {
    case PerplexityProtocol::Kind::gptq:
      return disjoint(n_tokens, protocol.window, 1);
    case PerplexityProtocol::Kind::llamacpp:
      return disjoint(n_tokens, protocol.window, protocol.window / 2 + 1);
    case PerplexityProtocol::Kind::stride:
      return strided(n_tokens, protocol.window, protocol.stride);
  }
  return {};
}

at::Tensor window_ids(const std::vector<int64_t>& ids, const EvalWindowGroup& group, int64_t first, int64_t count,
                      std::optional<int64_t> head) {
  at::Tensor result = at::empty({count, group.length}, at::kLong);
  auto* out = result.data_ptr<int64_t>();
  for (int64_t w = 0; w < count; ++w) {
    const auto begin = ids.begin() + group.windows[static_cast<size_t>(first + w)].begin;
    std::copy(begin, begin + group.length, out + w * group.length);
    if (head) out[w * group.length] = *head;
  }
  return result;
}

}  // namespace cinch
