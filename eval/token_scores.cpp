#include "eval/token_scores.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace cinch {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 21;  // 8 MiB of fp32: the passes over a block stay in the CPU's caches

struct Block {
  at::Tensor shifted;      // (N, V) logits minus their maximum
  at::Tensor exponential;  // (N, V)
  at::Tensor sum;          // (N) fp64
};

/// Overwrites `logits`.
Block shift_and_exponentiate(at::Tensor logits) {
  Block block;
  block.shifted = logits.sub_(logits.amax(1, true));
  block.exponential = block.shifted.exp();
  block.sum = block.exponential.sum(1, false, at::kDouble);
  return block;
}

at::Tensor loss(const Block& block, const at::Tensor& targets) {
  return block.sum.log() - block.shifted.gather(1, targets.unsqueeze(1)).squeeze(1).to(at::kDouble);
}

void append(std::vector<double>& values, const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kCPU, at::kDouble).contiguous();
  values.insert(values.end(), flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel());
}

}  // namespace

void TokenScores::add_rows(at::Tensor& logits, at::Tensor& reference, const at::Tensor& targets) {
  const int64_t rows = std::max<int64_t>(kBlockElements / logits.size(1), 1);
  for (int64_t begin = 0; begin < logits.size(0); begin += rows) {
    const int64_t count = std::min(rows, logits.size(0) - begin);
    const at::Tensor target = targets.narrow(0, begin, count);
    const Block model = shift_and_exponentiate(logits.narrow(0, begin, count));
    append(nll, loss(model, target));
    if (!reference.defined()) continue;

    const Block ref = shift_and_exponentiate(reference.narrow(0, begin, count));
    append(reference_nll, loss(ref, target));
    const at::Tensor best = ref.shifted.argmax(1, true);
    const at::Tensor agree = model.shifted.gather(1, best).squeeze(1).eq(0).to(at::kCPU).contiguous();
    agrees.insert(agrees.end(), agree.data_ptr<bool>(), agree.data_ptr<bool>() + count);
    const at::Tensor cross = ref.exponential.mul_(ref.shifted.sub_(model.shifted)).sum(1, false, at::kDouble);
    append(kl, (cross / ref.sum - ref.sum.log() + model.sum.log()).clamp_min_(0));
  }
}

WindowMean mean_over_windows(const std::vector<double>& values, const std::vector<int64_t>& window_tokens) {
  double total = 0;
  for (const double value : values) total += value;
  WindowMean result{.mean = total / static_cast<double>(values.size()),
                    .standard_error = std::numeric_limits<double>::quiet_NaN()};
  const auto windows = static_cast<double>(window_tokens.size());
  if (windows < 2) return result;

  double squares = 0;
  size_t at = 0;
  for (const int64_t count : window_tokens) {
    double residual = -result.mean * static_cast<double>(count);
    for (int64_t i = 0; i < count; ++i) residual += values[at++];
    squares += residual * residual;
  }
  const double tokens_per_window = static_cast<double>(values.size()) / windows;
  result.standard_error = std::sqrt(squares / (windows * (windows - 1))) / tokens_per_window;
  return result;
}

std::string yardstick_of(double kl_mean) {
  if (kl_mean < 0.0005) return "Q8";
  if (kl_mean < 0.01) return "Q5";
  if (kl_mean <= 0.2) return "Q3_K_M";
  return "visible damage";
}

FidelityReport fidelity_of(const TokenScores& scores) {
  FidelityReport report;
  report.tokens = static_cast<int64_t>(scores.kl.size());
  const WindowMean kl = mean_over_windows(scores.kl, scores.window_tokens);
  report.kl_mean = kl.mean;
  report.kl_stderr = kl.standard_error;
  std::vector<double> sorted = scores.kl;
  std::sort(sorted.begin(), sorted.end());
  const auto quantile = [&](double q) {
    const double position = q * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(position);
    const size_t above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
  };
  report.kl_median = quantile(0.5);
  report.kl_p99 = quantile(0.99);
  report.kl_max = sorted.back();
  const WindowMean top1 = mean_over_windows({scores.agrees.begin(), scores.agrees.end()}, scores.window_tokens);
  report.top1_agreement = top1.mean;
  report.top1_stderr = top1.standard_error;
  double squares = 0;
  for (size_t i = 0; i < scores.nll.size(); ++i) {
    const double change = std::exp(-scores.nll[i]) - std::exp(-scores.reference_nll[i]);
    report.true_probability_change_mean += change / static_cast<double>(report.tokens);
    squares += change * change;
  }
  report.true_probability_change_rms = std::sqrt(squares / static_cast<double>(report.tokens));
  report.yardstick = yardstick_of(report.kl_mean);
  return report;
}

}  // namespace cinch
