// Fidelity of several conversions of one model on the same windows, the original's forward pass being made only once:
//
//   compare_models REFERENCE TEXT.ids WINDOW TOKENS MODEL...
//
// Protocol ppl-gptq-WINDOW (docs/protocols.md) on the first TOKENS (one number, or several as "10240,61440") of the
// text (token ids as `cinch tokenize` or
// --tokens take them), fp32. One JSON object per model on stdout, perplexity and fidelity as `cinch eval --json` prints
// them.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <numeric>
#include <sstream>

#include "core/errors.h"
#include "core/files.h"
#include "eval/eval_windows.h"
#include "eval/perplexity.h"
#include "eval/token_scores.h"
#include "model/decoder_model.h"
#include "model/model_source.h"

namespace {

using namespace cinch;

constexpr int64_t kRows = 256;  // logit rows held at a time

std::vector<int64_t> read_ids(const std::string& path) {
  std::istringstream file(read_text(path));
  std::vector<int64_t> ids;
  for (int64_t id; file >> id;) ids.push_back(id);
  return ids;
}

LayerStream run_layers(const std::string& path, const at::Tensor& windows) {
  LayerStream stream(ModelSource::open(path), windows, {});
  while (!stream.done()) stream.advance(stream.load_layer());
  return stream;
}

/// Logits of all but the last token of a window, rows [first, first + count).
at::Tensor logits(LayerStream& stream, int64_t window, int64_t first, int64_t count) {
  return stream.trunk().logits(stream.hidden()[window].narrow(0, first, count));
}

std::vector<int64_t> numbers(const std::string& text) {
  std::istringstream parts(text);
  std::vector<int64_t> result;
  for (std::string part; std::getline(parts, part, ',');) result.push_back(std::stoll(part));
  std::sort(result.begin(), result.end());
  return result;
}

/// The scores of the first `windows` windows.
TokenScores first_windows(const TokenScores& scores, int64_t windows) {
  TokenScores part = scores;
  part.window_tokens.resize(static_cast<size_t>(windows));
  const auto tokens =
      static_cast<size_t>(std::accumulate(part.window_tokens.begin(), part.window_tokens.end(), int64_t{0}));
  for (auto* values : {&part.nll, &part.reference_nll, &part.kl}) values->resize(tokens);
  part.agrees.resize(tokens);
  return part;
}

void run(const std::vector<std::string>& args) {
  if (args.size() < 6) throw UsageError("too few arguments", "see the head of bench/compare_models.cpp");
  const std::vector<int64_t> lengths = numbers(args[4]);
  const PerplexityProtocol protocol{.window = std::stoll(args[3]), .max_tokens = lengths.back()};
  std::vector<int64_t> ids = read_ids(args[2]);
  ids.resize(std::min(ids.size(), static_cast<size_t>(protocol.max_tokens)));
  const EvalWindowGroup group = eval_windows(protocol, static_cast<int64_t>(ids.size())).front();
  const at::Tensor windows = window_ids(ids, group, 0, static_cast<int64_t>(group.windows.size()), std::nullopt);
  LayerStream reference = run_layers(args[1], windows);
  for (size_t i = 5; i < args.size(); ++i) {
    LayerStream model = run_layers(args[i], windows);
    TokenScores scores;
    for (int64_t w = 0; w < windows.size(0); ++w) {
      const int64_t scored = windows.size(1) - 1;
      for (int64_t first = 0; first < scored; first += kRows) {
        const int64_t count = std::min(kRows, scored - first);
        at::Tensor own = logits(model, w, first, count), other = logits(reference, w, first, count);
        scores.add_rows(own, other, windows[w].narrow(0, first + 1, count));
      }
      scores.window_tokens.push_back(scored);
    }
    for (const int64_t length : lengths) {
      const TokenScores part = first_windows(scores, std::min(length / protocol.window, windows.size(0)));
      const Json line = {
          {"model", args[i]},
          {"perplexity", perplexity_of(protocol, part.nll, part.window_tokens).to_json()},
          {"reference_perplexity", perplexity_of(protocol, part.reference_nll, part.window_tokens).to_json()},
          {"fidelity", fidelity_of(part).to_json()}};
      std::cout << line.dump() << std::endl;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const c10::InferenceMode inference;
  try {
    run(std::vector<std::string>(argv, argv + argc));
  } catch (const std::exception& error) {
    for (const std::string& line : describe_error(error).lines) std::cerr << line << "\n";
    return 1;
  }
  return 0;
}
