#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "core/errors.h"
#include "core/progress.h"
#include "eval/eval_windows.h"
#include "eval/perplexity.h"
#include "eval/token_scores.h"

namespace cinch {
namespace {

constexpr int64_t kHiddenBytes = int64_t{256} << 20;  // of one model's residual stream held at a time
constexpr int64_t kLogitElements = int64_t{1} << 24;  // 64 MiB of fp32 logits held at a time for one model
constexpr int64_t kProbeTokens = 4;

/// Bytes that one token adds to this layer's cache at 16 bits, from the cache of a run over some tokens of `hidden` (W,
/// T, E).
int64_t measure_cache(const DecoderLayer& layer, const at::Tensor& hidden) {
  const at::Tensor some = hidden.narrow(0, 0, 1).narrow(1, 0, std::min(kProbeTokens, hidden.size(1)));
  KvCache cache;
  layer.attention().head_outputs(layer.attention_input(some), 0, 0, &cache);
  return cache.bytes_per_token() * 2 / some.element_size();
}

struct Stream {
  std::shared_ptr<ModelSource> model;
  int64_t kv_bytes = 0;  // measured in the first pass
};

/// `stream` through all layers.
void run_layers(LayerStream& stream, Stream& of, Progress& progress) {
  const bool measure = of.kv_bytes == 0;
  while (!stream.done()) {
    check_interrupt();
    const DecoderLayer layer = stream.load_layer();
    if (measure) of.kv_bytes += measure_cache(layer, stream.hidden());
    stream.advance(layer);
    progress.advance();
  }
}

/// Rows of the residual stream whose logits predict a scored token, and those tokens.
struct ScoredRows {
  std::vector<int64_t> rows, targets;
};

ScoredRows scored_rows(const at::Tensor& windows, const EvalWindowGroup& group, int64_t first, TokenScores& scores) {
  ScoredRows result;
  const auto* ids = windows.const_data_ptr<int64_t>();
  for (int64_t w = 0; w < windows.size(0); ++w) {
    const int64_t from = group.windows[static_cast<size_t>(first + w)].scored_from;
    for (int64_t p = from; p < group.length; ++p) {
      result.rows.push_back(w * group.length + p - 1);
      result.targets.push_back(ids[w * group.length + p]);
    }
    scores.window_tokens.push_back(group.length - from);
  }
  return result;
}

at::Tensor logits_of_rows(LayerStream& stream, const at::Tensor& rows) {
  const at::Tensor& hidden = stream.hidden();
  return stream.trunk().logits(hidden.view({-1, hidden.size(2)}).index_select(0, rows));
}

void score(LayerStream& model, LayerStream* reference, const ScoredRows& scored, int64_t vocabulary,
           TokenScores& scores) {
  const auto count = static_cast<int64_t>(scored.rows.size());
  const at::Device device = model.hidden().device();
  const at::Tensor rows = at::tensor(scored.rows, at::kLong).to(device);
  const at::Tensor targets = at::tensor(scored.targets, at::kLong).to(device);
  const int64_t step = std::clamp<int64_t>(kLogitElements / vocabulary, 1, 1024);
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t n = std::min(step, count - begin);
    const at::Tensor some = rows.narrow(0, begin, n);
    at::Tensor logits = logits_of_rows(model, some);
    at::Tensor other = reference != nullptr ? logits_of_rows(*reference, some) : at::Tensor();
    scores.add_rows(logits, other, targets.narrow(0, begin, n));
    check_interrupt();
  }
}

void check_inputs(const ModelConfig& model, const ModelConfig* reference, const std::vector<int64_t>& ids) {
  if (reference != nullptr && reference->vocab_size != model.vocab_size) {
    throw UsageError(fmt::format("--reference has a vocabulary of {} tokens, the model one of {}",
                                 reference->vocab_size, model.vocab_size),
                     "compare a model with the one it was made from");
  }
  for (const int64_t id : ids) {
    if (id < 0 || id >= model.vocab_size) {
      throw UsageError(fmt::format("token id {} is outside the model's vocabulary of {}", id, model.vocab_size),
                       "the text was tokenised for another model");
    }
  }
}

int64_t windows_at_once(const EvalWindowGroup& group, int64_t hidden_size, at::ScalarType dtype) {
  const int64_t bytes = group.length * hidden_size * static_cast<int64_t>(c10::elementSize(dtype));
  return std::clamp<int64_t>(kHiddenBytes / bytes, 1, static_cast<int64_t>(group.windows.size()));
}

}  // namespace

EvalReport evaluate(std::shared_ptr<ModelSource> model, std::shared_ptr<ModelSource> reference,
                    const std::vector<int64_t>& ids, const EvalOptions& options) {
  const c10::InferenceMode inference;
  const auto start = std::chrono::steady_clock::now();
  const ModelConfig& config = model->config();
  check_inputs(config, reference ? &reference->config() : nullptr, ids);

  std::vector<int64_t> text = ids;
  const bool llamacpp = options.protocol.kind == PerplexityProtocol::Kind::llamacpp;
  const std::optional<int64_t> head = llamacpp ? options.bos_id : std::nullopt;
  if (head) text.insert(text.begin(), *head);
  if (options.protocol.max_tokens > 0)
    text.resize(std::min(text.size(), static_cast<size_t>(options.protocol.max_tokens)));
  const auto groups = eval_windows(options.protocol, static_cast<int64_t>(text.size()));

  Stream of_model{model}, of_reference{reference};
  const int64_t width = std::max(config.hidden_size, reference ? reference->config().hidden_size : 0);
  uint64_t passes = 0;
  for (const auto& group : groups) {
    const auto windows = static_cast<int64_t>(group.windows.size());
    if (windows > 0) passes += static_cast<uint64_t>((windows - 1) / windows_at_once(group, width, options.dtype) + 1);
  }
  const int64_t layers = config.n_layers + (reference ? reference->config().n_layers : 0);
  Progress progress({.phase = "eval", .unit = "layers", .total = passes * static_cast<uint64_t>(layers)});
  TokenScores scores;
  int64_t tokens_run = 0;
  const LayerStream::Options stream_options{.dtype = options.dtype, .device = options.device};
  for (const auto& group : groups) {
    const auto total = static_cast<int64_t>(group.windows.size());
    if (total == 0) continue;
    const int64_t step = windows_at_once(group, width, options.dtype);
    for (int64_t first = 0; first < total; first += step) {
      const at::Tensor windows = window_ids(text, group, first, std::min(step, total - first), head);
      LayerStream stream(model, windows, stream_options);
      run_layers(stream, of_model, progress);
      std::optional<LayerStream> other;
      if (reference) {
        other.emplace(reference, windows, stream_options);
        run_layers(*other, of_reference, progress);
      }
      score(stream, other ? &*other : nullptr, scored_rows(windows, group, first, scores), config.vocab_size, scores);
      tokens_run += windows.numel() * (reference ? 2 : 1);
    }
  }
  progress.finish();

  EvalReport report;
  report.perplexity = perplexity_of(options.protocol, scores.nll, scores.window_tokens);
  report.kv_bytes_per_token = of_model.kv_bytes;
  if (reference) {
    report.reference_perplexity = perplexity_of(options.protocol, scores.reference_nll, scores.window_tokens);
    report.fidelity = fidelity_of(scores);
    report.kv_ratio = static_cast<double>(of_model.kv_bytes) / static_cast<double>(of_reference.kv_bytes);
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.tokens_per_second = static_cast<double>(tokens_run) / report.seconds;
  return report;
}

}  // namespace cinch
