#include "model/export/exporter.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/errors.h"
#include "core/files.h"
#include "core/progress.h"
#include "model/decoder_model.h"
#include "model/export/rounded_model.h"
#include "model/export/stock_latent.h"
#include "model/export/stock_reference.h"
#include "model/mixed_layers.h"

namespace cinch {
namespace {

constexpr int64_t kCheckedTokens = 128;
// An output may be this many times further from the model than the model is from itself in the output's type.
constexpr double kAllowedRatio = 4;
constexpr double kRoundOffKl = 1e-6;      // nats, of the same numbers in fp32 on another path
constexpr double kRoundOffLogits = 1e-3;  // of the largest logit, for fp32 and fp64 outputs
constexpr double kServedEps = 1e-6;       // the one that vLLM and SGLang get for all norms
constexpr const char* kCheckText =
    "The lighthouse keeper climbed the stairs every evening before the sun went down. He lit the lamp, wound the clock "
    "and wrote three lines into his book: the direction of the wind, the number of ships that he had seen, and what he "
    "had eaten. In 1874, after a storm that lasted four days, he added a fourth line. It said that the sea had taken "
    "the boat, the garden and most of the wall, but that the light had not gone out once, and that he would need about "
    "200 bricks, some rope (at least 30 metres) and a new pair of boots before the winter came.";

bool holds_stock_class(const std::string& format) { return format == "hf" || format == "gguf"; }

std::string runtime_of(const ExportOptions& options) {
  const std::string& format = options.writer.format;
  const std::string& runtime = options.writer.runtime;
  if (runtime.empty()) return format == "gguf" ? "llama.cpp" : format == "hf" ? "hf" : "";
  const bool reads_gguf = runtime == "llama.cpp";
  if (reads_gguf != (format == "gguf") || !holds_stock_class(format)) {
    throw UsageError(fmt::format("--runtime {} and --format {} contradict each other", runtime, format),
                     reads_gguf ? "llama.cpp reads --format gguf" : "it reads --format hf");
  }
  return runtime;
}

/// The model with its latent as wide as it will be written.
ModelConfig padded(ModelConfig config, int64_t rank) {
  for (AttentionSpec& spec : config.layers) {
    if (spec.kind != AttentionKind::latent) continue;
    if (rank > 0 && rank < spec.kv_lora_rank) {
      throw UsageError(fmt::format("--pad-rank {}: the latent has {} numbers already", rank, spec.kv_lora_rank));
    }
    spec.kv_lora_rank = std::max(spec.kv_lora_rank, rank);
  }
  return config;
}

StockLatentOptions stock_options(const ModelConfig& config, const std::string& runtime, const ExportOptions& options,
                                 Dtype dtype) {
  StockLatentOptions stock{.rank = options.pad_rank};
  if (runtime == "llama.cpp") {
    stock.latent_norm_eps = config.rms_norm_eps;
    stock.biases = false;
    stock.stretches_linear = true;
    stock.least_nope_dim = 1;
    return stock;
  }
  stock.split_scale = dtype == Dtype::kF16;
  if (runtime == "hf") {
    stock.poison = true;
  } else {
    stock.biases = false;
    if (config.rms_norm_eps != kServedEps) stock.rms_norm_eps = kServedEps;
  }
  return stock;
}

/// (T): of a small text, or any ids where there is no tokenizer.
at::Tensor check_ids(const ModelSource& source) {
  const int64_t most = std::min(kCheckedTokens, source.config().max_position_embeddings);
  std::vector<int64_t> ids;
  if (const auto tokenizer = source.tokenizer()) ids = tokenizer->encode(kCheckText, /*add_special=*/true);
  if (ids.empty()) {
    for (int64_t i = 0; i < most; ++i) ids.push_back((i * 7919 + 13) % source.config().vocab_size);
  }
  if (static_cast<int64_t>(ids.size()) > most) ids.resize(static_cast<size_t>(most));
  return at::tensor(at::ArrayRef<int64_t>(ids), at::kLong);
}

at::Tensor native_logits(const std::shared_ptr<ModelSource>& source, const at::Tensor& ids) {
  at::Tensor result;
  stream_logits(source, ids.unsqueeze(0), {},
                [&](int64_t, const at::Tensor& logits) { result = logits[0].to(at::kFloat).clone(); });
  return result;
}

/// What was written, through formulas of its own where there are some, against the model that was to be written.
Json verify(const std::shared_ptr<ModelSource>& source, const std::filesystem::path& written,
            const ExportOptions& options, bool exact) {
  const at::Tensor ids = check_ids(*source);
  const at::Tensor meant = native_logits(source, ids);
  const bool formulas = has_stock_reference(written);
  const at::Tensor found =
      formulas ? stock_reference_logits(written, ids) : native_logits(ModelSource::open(written), ids);
  const LogitDifference difference = logit_difference(meant, found);
  const bool q8_0 = options.writer.dtype == "q8_0";
  const Dtype dtype = output_dtype(options.writer, source->config());
  Json json = {{"tokens", ids.numel()},
               {"path", formulas ? "formulas of the runtime's class, on the tensors as written"
                                 : "read back as cinch reads models"},
               {"difference", difference.to_json()}};
  double allowed_kl = kRoundOffKl;
  const bool wide = !q8_0 && (dtype == Dtype::kF32 || dtype == Dtype::kF64);
  if (!wide) {
    const LogitDifference rounding = logit_difference(meant, native_logits(as_rounded(source, dtype, q8_0), ids));
    json["rounding"] = rounding.to_json();
    allowed_kl += kAllowedRatio * rounding.kl_mean;
  }
  json["allowed_kl_mean"] = allowed_kl;
  json["exact"] = exact;
  const double largest = meant.abs().max().item<double>();
  const bool close = difference.kl_mean <= allowed_kl && (!wide || difference.max_abs <= kRoundOffLogits * largest);
  if (exact && !close) {
    throw VerificationError(
        fmt::format("what was written computes other logits: largest difference {:.3g} of {:.3g}, KL {:.3g} nats where "
                    "{:.3g} is round-off",
                    difference.max_abs, largest, difference.kl_mean, allowed_kl),
        "nothing was published; please report this model's config.json");
  }
  return json;
}

Json rule_list(const std::vector<BrokenRule>& rules) {
  Json list = Json::array();
  for (const BrokenRule& entry : rules) list.push_back({{"rule", entry.rule->id}, {"left_out", entry.obstacle}});
  return list;
}

/// The model is published by then: what is printed too must not make it fail.
void keep_beside(std::filesystem::path output, const std::string& verification) {
  output += ".verification.json";
  try {
    write_text(output, verification);
  } catch (const std::exception& error) {
    log_warning(fmt::format("cannot write {}: {}", output.string(), error.what()));
  }
}

}  // namespace

Json LogitDifference::to_json() const {
  return {{"max_abs", max_abs}, {"kl_mean", kl_mean}, {"kl_max", kl_max}, {"top1_agreement", top1_agreement}};
}

Json ExportReport::to_json() const {
  return {
      {"tensors", tensors}, {"runtime", runtime}, {"left_out", rule_list(left_out)}, {"verification", verification}};
}

LogitDifference logit_difference(const at::Tensor& reference, const at::Tensor& other) {
  const at::Tensor p = reference.to(at::kDouble).log_softmax(-1), q = other.to(at::kDouble).log_softmax(-1);
  const at::Tensor kl = (p.exp() * (p - q)).sum(-1);
  return {(reference - other).abs().max().item<double>(), kl.mean().item<double>(), kl.max().item<double>(),
          reference.argmax(-1).eq(other.argmax(-1)).to(at::kDouble).mean().item<double>()};
}

ExportReport export_model(std::shared_ptr<ModelSource> source, const ExportOptions& options) {
  ExportReport report;
  report.runtime = runtime_of(options);
  const std::string& format = options.writer.format;
  const ModelConfig config = padded(source->config(), options.pad_rank);
  if (!report.runtime.empty()) report.left_out = require_runtime(config, report.runtime, options.writer.approximate);

  const bool native_latent = holds_stock_class(format) && has_latent_layers(config) && !native_reason(config).empty();
  std::shared_ptr<ModelSource> view = source;
  if (native_latent) {
    const Dtype dtype = output_dtype(options.writer, config);
    view = as_stock_latent(source, stock_options(config, report.runtime, options, dtype));
  }
  const auto weights = view->family().weights(view->config());
  const auto writer = ModelWriter::create(view->config(), *view, options.writer);
  Progress progress({.phase = "export", .unit = "tensors", .total = weights.size()});
  for (const WeightSpec& weight : weights) {
    check_interrupt();
    writer->copy(weight.name);
    progress.advance();
  }
  progress.finish();
  report.tensors = weights.size();
  const std::filesystem::path written = writer->complete();
  if (format != "safetensors") report.verification = verify(source, written, options, report.left_out.empty());
  Json provenance = options.provenance;
  provenance["digests"] = writer->digests();
  writer->write_side_file("cinch.json", provenance.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  const std::string verification = report.to_json().dump(2) + "\n";
  writer->write_side_file("verification.json", verification);
  writer->commit();
  if (format == "gguf") keep_beside(options.writer.output, verification);
  return report;
}

}  // namespace cinch
