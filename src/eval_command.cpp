#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "attention/attention_kernel.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/progress.h"
#include "eval/evaluate.h"
#include "eval/logits_file.h"
#include "src/command_list.h"
#include "src/device.h"
#include "src/eval_output.h"
#include "src/kernel_option.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "text/corpus.h"

namespace cinch {
namespace {

constexpr int64_t kDefaultWindow = 2048;

using Sources = std::vector<std::shared_ptr<ModelSource>>;

struct EvalFlags {
  std::vector<std::string> models;
  std::string reference, cache, text, tokens, logits, output;
  std::string protocol = "ppl-gptq", dtype = "f32", device = "cpu", kernel = "auto";
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
  if (!flags.logits.empty() && (flags.models.size() > 1 || !flags.cache.empty())) {
    throw UsageError(fmt::format("--logits writes those of one model at 16 bits, found {}",
                                 flags.models.size() > 1 ? "several models" : "--cache " + flags.cache),
                     "run once for each model, without --cache");
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

std::filesystem::path place_of(const std::string& model) {
  std::error_code error;
  return std::filesystem::weakly_canonical(model, error);
}

/// Throws UsageError when two of the models are the same place.
void check_distinct(const std::vector<std::string>& models) {
  std::vector<std::filesystem::path> places;
  for (const std::string& model : models) {
    const std::filesystem::path place = place_of(model);
    if (std::find(places.begin(), places.end(), place) != places.end()) {
      throw UsageError(fmt::format("MODEL: {} is given twice", model), "give each model once");
    }
    places.push_back(place);
  }
}

/// "int8,int4"
std::vector<CachePrecision> cache_precisions(const std::string& list) {
  std::vector<CachePrecision> caches;
  if (list.empty()) return caches;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t comma = std::min(list.find(',', begin), list.size());
    const CachePrecision cache =
        with_context("reading --cache", [&] { return parse_cache_precision(list.substr(begin, comma - begin)); });
    if (std::find(caches.begin(), caches.end(), cache) != caches.end()) {
      throw UsageError(fmt::format("--cache {}: {} is given twice", list, list.substr(begin, comma - begin)));
    }
    caches.push_back(cache);
    begin = comma + 1;
  }
  return caches;
}

/// The shortest of the models'.
int64_t context_of(const Sources& models) {
  int64_t context = models.front()->config().max_position_embeddings;
  for (const auto& model : models) context = std::min(context, model->config().max_position_embeddings);
  return context;
}

PerplexityProtocol protocol_of(const EvalFlags& flags, int64_t context) {
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
                                            : std::min(kDefaultWindow, std::max<int64_t>(context, 2));
    id = fmt::format("{}-{}", id, window);
    if (flags.stride > 0) id += fmt::format("-{}", flags.stride);
  } else if (flags.stride > 0 && protocol.stride != flags.stride) {
    id = fmt::format("ppl-stride-{}-{}", protocol.window, flags.stride);
  }
  protocol = parse_protocol(id);
  protocol.max_tokens = flags.max_tokens;
  if (protocol.window > context) {
    log_warning(
        fmt::format("windows of {} tokens are longer than the model's context of {}", protocol.window, context));
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

void write_report(const EvalFlags& flags, const EvalReport& report, AtomicFile* output) {
  // One model at 16 bits has a form of its own, which says more of it than a line of a table could.
  const bool table = flags.models.size() > 1 || !flags.cache.empty();
  Json json = table ? table_json(report) : single_json(report);
  if (!table) json["model"] = flags.models.front();
  if (!flags.reference.empty()) json["reference"] = flags.reference;
  json["text"] = flags.text.empty() ? flags.tokens : flags.text;
  json["dtype"] = flags.dtype;
  if (output != nullptr) {
    output->write(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    output->commit();
  }
  if (json_output()) {
    print_json(json);
  } else {
    print(table ? eval_table_text(report) : eval_text(report));
  }
}

void run(const EvalFlags& flags) {
  force_attention_kernel(flags.kernel);
  EvalOptions options;
  options.caches = cache_precisions(flags.cache);
  check(flags);
  check_distinct(flags.models);
  parse_protocol(flags.protocol);
  options.dtype = compute_dtype(flags.dtype);
  options.device = open_device(flags.device);
  Sources sources;
  std::vector<EvalModel> models;
  for (const std::string& path : flags.models) {
    // In a table of several the reference has rows of its own.
    if (flags.models.size() > 1 && !flags.reference.empty() && place_of(path) == place_of(flags.reference)) continue;
    sources.push_back(open_model(path, "MODEL"));
    models.push_back({path, sources.back()});
  }
  if (!flags.logits.empty()) return run_logits(flags, sources.front(), options.device);
  std::optional<EvalModel> reference;
  if (!flags.reference.empty()) reference = {flags.reference, open_model(flags.reference, "--reference")};
  options.protocol = protocol_of(flags, context_of(sources));
  const Input input = read_input(flags, *sources.front(), reference ? reference->source.get() : nullptr);
  options.bos_id = input.bos_id;
  // Before the work, so that a bad place shows at once.
  const auto output = flags.output.empty() ? nullptr : std::make_unique<AtomicFile>(flags.output);
  write_report(flags, evaluate(models, reference, input.ids, options), output.get());
}

void add_options(CLI::App& command, EvalFlags& flags) {
  command
      .add_option("MODEL", flags.models,
                  "Hugging Face folders, cinch folders or .gguf files; several give one table, on the same windows")
      ->required()
      ->type_name("PATH");
  command
      .add_option("--reference", flags.reference,
                  "The unconverted model: adds its perplexity, KL divergence, agreement, cache ratio")
      ->type_name("PATH");
  command
      .add_option("--cache", flags.cache,
                  "Evaluate also with emulated caches of these precisions, e.g. int8,int4 (int8, int4, int3, int2; "
                  "int8-token, fp8: latents as they are served)")
      ->type_name("LIST");
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
  add_kernel_option(command, flags.kernel);
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
