#include "eval/perplexity.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/errors.h"
#include "eval/token_scores.h"

namespace cinch {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 24;  // of a window

std::vector<std::string> split_at_dashes(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t dash = text.find('-'); dash != std::string::npos; dash = text.find('-', begin)) {
    parts.push_back(text.substr(begin, dash - begin));
    begin = dash + 1;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

UsageError unknown_protocol(const std::string& text) {
  return UsageError(
      fmt::format("unknown perplexity protocol \"{}\"", text),
      "known: ppl-gptq-W (disjoint windows of W tokens), ppl-stride-W-S (window W, stride S), ppl-llamacpp-512");
}

int64_t size_from(const std::string& part, const std::string& text) {
  int64_t value = 0;
  const auto [end, fault] = std::from_chars(part.data(), part.data() + part.size(), value);
  if (fault != std::errc() || end != part.data() + part.size()) throw unknown_protocol(text);
  return value;
}

}  // namespace

std::string PerplexityProtocol::id() const {
  switch (kind) {
    case Kind::gptq:
      return fmt::format("ppl-gptq-{}", window);
    case Kind::stride:
      return fmt::format("ppl-stride-{}-{}", window, stride);
    case Kind::llamacpp:
      return fmt::format("ppl-llamacpp-{}", window);
  }
  return {};
}

PerplexityProtocol parse_protocol(const std::string& text) {
  std::vector<std::string> parts = split_at_dashes(text);
  if (parts.front() == "ppl") parts.erase(parts.begin());
  if (parts.empty() || parts.size() > 3) throw unknown_protocol(text);
  PerplexityProtocol protocol;
  if (parts[0] == "gptq" && parts.size() <= 2) {
    protocol.kind = PerplexityProtocol::Kind::gptq;
  } else if (parts[0] == "stride") {
    protocol.kind = PerplexityProtocol::Kind::stride;
  } else if (parts[0] == "llamacpp" && parts.size() <= 2) {
    protocol.kind = PerplexityProtocol::Kind::llamacpp;
    protocol.window = 512;
  } else {
    throw unknown_protocol(text);
  }
  if (parts.size() > 1) protocol.window = size_from(parts[1], text);
  if (protocol.kind == PerplexityProtocol::Kind::stride) protocol.stride = std::max<int64_t>(protocol.window / 4, 1);
  if (parts.size() > 2) protocol.stride = size_from(parts[2], text);
  if (protocol.window < 2 || protocol.window > kMostTokens) {
    throw UsageError(
        fmt::format("protocol \"{}\": a window has 2 to {} tokens, found {}", text, kMostTokens, protocol.window));
  }
  if (protocol.kind == PerplexityProtocol::Kind::stride && (protocol.stride < 1 || protocol.stride > protocol.window)) {
    throw UsageError(
        fmt::format("protocol \"{}\": the stride is from 1 to the window, found {}", text, protocol.stride));
  }
  return protocol;
}

PerplexityResult perplexity_of(const PerplexityProtocol& protocol, const std::vector<double>& nll,
                               const std::vector<int64_t>& window_tokens) {
  const WindowMean loss = mean_over_windows(nll, window_tokens);
  PerplexityResult result;
  result.protocol = protocol.id();
  result.mean_nll = loss.mean;
  result.value = std::exp(loss.mean);
  result.stderr_value = result.value * loss.standard_error;
  result.tokens = static_cast<int64_t>(nll.size());
  result.window = protocol.window;
  result.windows = static_cast<int64_t>(window_tokens.size());
  return result;
}

Json PerplexityResult::to_json() const {
  return {{"protocol", protocol}, {"value", value},   {"stderr", stderr_value}, {"mean_nll", mean_nll},
          {"tokens", tokens},     {"window", window}, {"windows", windows}};
}

Json FidelityReport::to_json() const {
  return {{"kl_mean", kl_mean},
          {"kl_stderr", kl_stderr},
          {"kl_median", kl_median},
          {"kl_p99", kl_p99},
          {"kl_max", kl_max},
          {"top1_agreement", top1_agreement},
          {"top1_stderr", top1_stderr},
          {"true_probability_change_mean", true_probability_change_mean},
          {"true_probability_change_rms", true_probability_change_rms},
          {"yardstick", yardstick},
          {"tokens", tokens}};
}

}  // namespace cinch
