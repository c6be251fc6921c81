#include <fmt/format.h>
#include <algorithm>
#include <cmath>

#include "core/errors.h"
#include "eval/bench/decode_run.h"
#include "model/decode_session.h"

namespace cinch {
namespace {

class SessionRun : public DecodeRun {
 public:
  SessionRun(const DecoderModel& model, const DecodeRunOptions& options, const DecodeFunctions* functions)
      : filled_(std::max<int64_t>(options.context - options.steps, 1)),
        session_(model,
                 {.batch = options.batch,
                  .max_tokens = filled_ + options.steps,
                  .cache_format = options.cache_format,
                  .kernel = options.kernel,
                  .graphs = options.graphs,
                  .prefill_chunk = 1},  // there is no prompt
                 functions) {}

  bool has_kernels() const {
    const auto& choices = session_.choices();
    return std::any_of(choices.begin(), choices.end(),
                       [](const DecodeChoice& choice) { return choice.kernel != DecodeKernel::attend; });
  }
  void fill() {
    if (session_.emulates_cache()) {
      throw UnsupportedError(fmt::format("layers without a decode kernel would emulate the cache: {}", note()),
                             "--kv-bits 16");
    }
    session_.fill(filled_);
  }

  void step() override { session_.step_greedy(); }
  std::string kernel() const override { return session_.kernel_name(); }
  bool graph() const override { return session_.uses_graph(); }
  /// Of layers without a kernel; and why there is no graph, where one was wanted.
  std::string note() const override {
    std::string text;
    for (const std::string& line : session_.explain()) {
      if (line.find(": attend") != std::string::npos) text += (text.empty() ? "" : "; ") + line;
    }
    return text;
  }
  int64_t cache_bytes_allocated() const override { return session_.kv_bytes_allocated(); }

 private:
  int64_t filled_;
  DecodeSession session_;
};

}  // namespace

std::unique_ptr<DecodeRun> make_decode_run(const DecoderModel& model, const DecodeRunOptions& options,
                                           const DecodeFunctions* functions) {
  if (options.kernel == DecodeKernel::attend || (functions == nullptr && options.kernel == DecodeKernel::automatic))
    return plain_run(model, options);
  auto run = std::make_unique<SessionRun>(model, options, functions);
  // A session without kernels takes one sequence after the other.
  if (!run->has_kernels()) return plain_run(model, options);
  run->fill();
  return run;
}

int64_t session_cache_bytes(const ModelConfig& config, const DecodeRunOptions& options) {
  double bytes = 0;
  for (const AttentionSpec& spec : config.layers) {
    const int64_t tokens = spec.window > 0 ? std::min(options.context, spec.window + kCachePage) : options.context;
    bytes += bytes_per_token(spec, options.cache_format) *
             static_cast<double>((tokens + kCachePage - 1) / kCachePage * kCachePage);
    const bool open = spec.kind == AttentionKind::latent && options.cache_format == CacheFormat::int4;
    if (open) bytes += static_cast<double>(2 * kCachePage * cache_columns(spec).all());
  }
  return std::llround(bytes * static_cast<double>(options.batch));
}

}  // namespace cinch
