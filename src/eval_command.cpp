#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "core/errors.h"
#include "core/files.h"
#include "core/progress.h"
#include "eval/logits_file.h"
#include "eval/perplexity.h"
#include "src/command_list.h"
#include "src/device.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "text/corpus.h"

namespace cinch {
namespace {

constexpr int64_t kDefaultWindow = 2048;

struct EvalFlags {
  std::string model, reference, text, tokens, logits, output;
  std::string protocol = "ppl-gptq", dtype = "f32", device = "cpu";
  int64_t window = 0, stride = 0, max_tokens = 0;
};

void check(const EvalFlags& flags) {
  if (flags.text.empty() == flags.tokens.empty()) {
    throw UsageError(
        flags.text.empty() ? "`cinch eval` needs --text or --tokens" : "--text and --tokens contradict each other",
        "--text FILE for text (txt, jsonl, folder), --tokens FILE for ids");
  }
  if (!flags.logits.empty() && flags.tokens.empty()) {
    throw UsageError("--logits needs --tokens", "--tokens FILE lists the ids, one sequence per line");
  }
  if (!flags.logits.empty() && !flags.reference.empty()) {
    throw UsageError("--logits and --reference contradict each other", "run once for each model and compare the files");
  }
  for (const auto& [flag, value] :
       {std::pair{"--window", flags.window}, {"--stride", flags.stride}, {"--max-tokens", flags.max_tokens}}) {
    if (value < 0) throw UsageError(fmt::format("{}: expected 1 or more, found {}", flag, value));
  }
  const std::string& input = flags.text.empty() ? flags.tokens : flags.text;
  std::error_code error;
  if (!std::filesystem::exists(input, error)) {
    throw UsageError(fmt::format("{}: no such file or folder: {}", flags.text.empty() ? "--tokens" : "--text", input));
  }
}

PerplexityProtocol protocol_of(const EvalFlags& flags, const ModelConfig& model) {
  PerplexityProtocol protocol = parse_protocol(flags.protocol);
  const bool named_window = flags.protocol.find_first_of("0123456789") != std::string::npos;
  const bool llamacpp = protocol.kind == PerplexityProtocol::Kind::llamacpp;
  if (flags.window > 0 && named_window && protocol.window != flags.window) {
    throw UsageError(fmt::format("--window {} and --protocol {} contradict each other", flags.window, flags.protocol),
                     "give one of them");
  }
  if (flags.stride > 0 && protocol.kind != PerplexityProtocol::Kind::stride) {
    throw UsageError(fmt::format("--stride has no meaning for {}", protocol.id()), "add --protocol ppl-stride");
  }
  std::string id = flags.protocol;
  if (!named_window) {
    const int64_t window = flags.window > 0 ? flags.window
                           : llamacpp       ? protocol.window
                                      : std::min(kDefaultWindow, std::max<int64_t>(model.max_position_embeddings, 2));
    id = fmt::format("{}-{}", id, window);
    if (flags.stride > 0) id += fmt::format("-{}", flags.stride);
  } else if (flags.stride > 0 && protocol.stride != flags.stride) {
    id = fmt::format("ppl-stride-{}-{}", protocol.window, flags.stride);
  }
  protocol = parse_protocol(id);
  protocol.max_tokens = flags.max_tokens;
  if (protocol.window > model.max_position_embeddings) {
    log_warning(fmt::format("windows of {} tokens are longer than the model's context of {}", protocol.window,
                            model.max_position_embeddings));
  }
  return protocol;
}

std::unique_ptr<Tokenizer> require_tokenizer(const ModelSource& model, const ModelSource* reference) {
  auto tokenizer = model.tokenizer();
  if (!tokenizer && reference != nullptr) tokenizer = reference->tokenizer();
  if (!tokenizer) {
    throw UsageError(fmt::format("{} has no tokenizer, so --text cannot be used", model.path().string()),
                     "put tokenizer.json or tokenizer.model into the folder, or give ids with --tokens");
  }
  return tokenizer;
}

struct Input {
  std::vector<int64_t> ids;
  std::optional<int64_t> bos_id;
};

Input read_input(const EvalFlags& flags, const ModelSource& model, const ModelSource* reference) {
  Input input;
  if (flags.text.empty() || is_token_file(flags.text)) {
    input.ids = read_token_file(flags.text.empty() ? flags.tokens : flags.text);
    const auto tokenizer = model.tokenizer();
    if (!tokenizer) return input;
    const auto special = tokenizer->encode("", true);
    if (!special.empty() && special.front() == tokenizer->bos_id()) input.bos_id = special.front();
    return input;
  }
  const auto tokenizer = require_tokenizer(model, reference);
  const auto special = tokenizer->encode("", true);
  if (!special.empty() && special.front() == tokenizer->bos_id()) input.bos_id = special.front();
  input.ids = tokenize_corpus(*tokenizer, flags.text);
  return input;
}

std::string plus_minus(double value, double error, int digits) {
  return std::isnan(error) ? fmt::format("{:.{}f}", value, digits)
                           : fmt::format("{:.{}f} ± {:.{}f}", value, digits, error, digits);
}

std::string to_text(const EvalFlags& flags, const EvalReport& report) {
  const PerplexityResult& ppl = report.perplexity;
  std::string text = fmt::format("{}: {} windows, {} tokens scored\n\n", ppl.protocol, ppl.windows, ppl.tokens);
  std::vector<std::vector<std::string>> rows = {{"model", "perplexity", "KV bytes/token (16 bits)"}};
  if (report.reference_perplexity) {
    const double bytes = static_cast<double>(report.kv_bytes_per_token) / report.kv_ratio;
    rows.push_back({flags.reference,
                    plus_minus(report.reference_perplexity->value, report.reference_perplexity->stderr_value, 4),
                    fmt::format("{:.0f}", bytes)});
  }
  rows.push_back({flags.model, plus_minus(ppl.value, ppl.stderr_value, 4), std::to_string(report.kv_bytes_per_token)});
  text += format_table(rows);
  if (report.fidelity) {
    const FidelityReport& f = *report.fidelity;
    text += fmt::format(
        "\nKL(reference || model)  mean {} nats, median {:.6f}, 99th percentile {:.5f}, max {:.4f}: class {}\n",
        plus_minus(f.kl_mean, f.kl_stderr, 6), f.kl_median, f.kl_p99, f.kl_max, f.yardstick);
    text += fmt::format("top-1 agreement         {} %\n", plus_minus(100 * f.top1_agreement, 100 * f.top1_stderr, 2));
    text += fmt::format("true token probability  mean change {:+.5f}, RMS {:.5f}\n", f.true_probability_change_mean,
                        f.true_probability_change_rms);
    text += fmt::format("cache                   {:.2f} % of the reference's\n", 100 * report.kv_ratio);
  }
  return text + fmt::format("\n{:.1f} s, {:.0f} tokens/s\n", report.seconds, report.tokens_per_second);
}

void run_logits(const EvalFlags& flags, const std::shared_ptr<ModelSource>& model, c10::Device device) {
  const auto sequences = read_sequences(flags.tokens);
  write_logits(model, sequences, flags.logits, compute_dtype(flags.dtype), device);
  int64_t rows = 0;
  for (const auto& sequence : sequences) rows += static_cast<int64_t>(sequence.size());
  if (json_output()) {
    print_json({{"logits", flags.logits},
                {"tokens", rows},
                {"vocab_size", model->config().vocab_size},
                {"sequences", sequences.size()}});
  } else {
    print(fmt::format("{}: fp32 logits ({}, {})\n", flags.logits, rows, model->config().vocab_size));
  }
}

void run(const EvalFlags& flags) {
  check(flags);
  parse_protocol(flags.protocol);
  const c10::ScalarType dtype = compute_dtype(flags.dtype);
  const c10::Device device = open_device(flags.device);
  const auto model = open_model(flags.model, "MODEL");
  if (!flags.logits.empty()) return run_logits(flags, model, device);
  const auto reference = flags.reference.empty() ? nullptr : open_model(flags.reference, "--reference");
  const PerplexityProtocol protocol = protocol_of(flags, model->config());
  const Input input = read_input(flags, *model, reference.get());
  // Before the work, so that a bad place shows at once.
  const auto output = flags.output.empty() ? nullptr : std::make_unique<AtomicFile>(flags.output);
  const EvalOptions options{.protocol = protocol, .dtype = dtype, .device = device, .bos_id = input.bos_id};
  const EvalReport report = evaluate(model, reference, input.ids, options);
  Json json = report.to_json();
  json["model"] = flags.model;
  if (reference) json["reference"] = flags.reference;
  json["text"] = flags.text.empty() ? flags.tokens : flags.text;
  json["dtype"] = flags.dtype;
  if (output) {
    output->write(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    output->commit();
  }
  if (json_output()) {
    print_json(json);
  } else {
    print(to_text(flags, report));
  }
}

void add_options(CLI::App& command, EvalFlags& flags) {
  command.add_option("MODEL", flags.model, "Hugging Face folder, cinch folder or .gguf file")
      ->required()
      ->type_name("PATH");
  command
      .add_option("--reference", flags.reference,
                  "The unconverted model: adds its perplexity, KL divergence, agreement, cache ratio")
      ->type_name("PATH");
  command.add_option("--text", flags.text, "Text to measure on: .txt, .jsonl, a folder of .txt, or a token dataset")
      ->type_name("PATH");
  command.add_option("--tokens", flags.tokens, "Token ids to measure on, separated by blanks (or .npy, .h5)")
      ->type_name("FILE");
  command.add_option("--protocol", flags.protocol, "ppl-gptq-W, ppl-stride-W-S or ppl-llamacpp-512")
      ->capture_default_str()
      ->type_name("ID");
  command.add_option("--window", flags.window, "Window in tokens (default: 2048, or the model's context if shorter)")
      ->type_name("INT");
  command.add_option("--stride", flags.stride, "Stride in tokens (default: a quarter of the window)")->type_name("INT");
  command.add_option("--max-tokens", flags.max_tokens, "Use only the first tokens of the text")->type_name("INT");
  command.add_option("--dtype", flags.dtype, "Type to compute in")
      ->capture_default_str()
      ->type_name("f32|bf16|f16|f64");
  command.add_option("--device", flags.device, "cpu or cuda[:i]")->capture_default_str()->type_name("DEVICE");
  command
      .add_option("--logits", flags.logits, "Write the logits of --tokens (one sequence per line) as fp32 .npy instead")
      ->type_name("FILE");
  command.add_option("--output", flags.output, "Also write the JSON report to this file")->type_name("FILE");
}

}  // namespace

Command eval_command() {
  return {"eval", [](CLI::App& app) {
            auto flags = std::make_shared<EvalFlags>();
            CLI::App* command =
                app.add_subcommand("eval", "Perplexity, and fidelity to a reference model, with standard errors");
            add_options(*command, *flags);
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
