#include <fmt/format.h>

#include <iostream>
#include <iterator>
#include <memory>
#include <set>

#include "attention/attention_kernel.h"
#include "core/errors.h"
#include "core/progress.h"
#include "model/generator.h"
#include "src/command_list.h"
#include "src/device.h"
#include "src/kernel_option.h"
#include "src/model_argument.h"
#include "src/output.h"

namespace cinch {
namespace {

struct GenerateFlags {
  std::string model, prompt, dtype = "f32", device = "cpu", kernel = "auto";
  GenerateOptions options;
  bool prompt_given = false;
};

void check(const GenerateFlags& flags) {
  if (flags.options.max_new_tokens < 1) {
    throw UsageError(fmt::format("-n: expected 1 or more, found {}", flags.options.max_new_tokens));
  }
  if (!(flags.options.temperature >= 0)) {
    throw UsageError(fmt::format("--temperature: expected 0 (greedy) or more, found {}", flags.options.temperature));
  }
  if (!(flags.options.top_p > 0 && flags.options.top_p <= 1)) {
    throw UsageError(fmt::format("--top-p: expected a number in (0, 1], found {}", flags.options.top_p));
  }
}

void add_ids(const Json& value, std::set<int64_t>& ids) {
  if (value.is_number_integer()) ids.insert(value.get<int64_t>());
  if (value.is_array()) {
    for (const Json& item : value) add_ids(item, ids);
  }
}

/// End-of-text ids that the tokenizer, config.json and generation_config.json name.
std::vector<int64_t> stop_ids(const ModelSource& model, const Tokenizer& tokenizer) {
  std::set<int64_t> ids;
  if (tokenizer.eos_id()) ids.insert(*tokenizer.eos_id());
  if (model.config().source.contains("eos_token_id")) add_ids(model.config().source["eos_token_id"], ids);
  const auto files = model.side_files();
  if (const auto found = files.find("generation_config.json"); found != files.end()) {
    const Json json = parse_json(found->second, "generation_config.json");
    if (json.is_object() && json.contains("eos_token_id")) add_ids(json["eos_token_id"], ids);
  }
  return {ids.begin(), ids.end()};
}

/// Turns ids into text as they come: a token's text depends on its neighbours (leading blanks, characters of several
/// tokens), so pieces are cut from the decoding of a short run of tokens, and held back while they end in an incomplete
/// character.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, std::vector<int64_t> prompt) : tokenizer_(tokenizer), ids_(std::move(prompt)) {
    begin_ = ids_.size() > kContext ? ids_.size() - kContext : 0;
    shown_ = ids_.size();
  }

  std::string add(int64_t id) {
    ids_.push_back(id);
    const std::string before = decode(shown_), now = decode(ids_.size());
    if (now.size() <= before.size() || now.ends_with("\xEF\xBF\xBD")) return {};
    begin_ = shown_;
    shown_ = ids_.size();
    return now.substr(before.size());
  }

  std::string rest() const {
    const std::string before = decode(shown_), now = decode(ids_.size());
    return now.size() > before.size() ? now.substr(before.size()) : std::string();
  }

 private:
  static constexpr size_t kContext = 8;
  std::string decode(size_t end) const {
    return tokenizer_.decode(std::span(ids_).subspan(begin_, end - begin_), true);
  }

  const Tokenizer& tokenizer_;
  std::vector<int64_t> ids_;
  size_t begin_ = 0, shown_ = 0;
};

struct Outcome {
  std::string text;
  GenerateResult result;
};

Outcome produce(const GenerateFlags& flags, const DecoderModel& model, const Tokenizer& tokenizer,
                const std::vector<int64_t>& prompt, const GenerateOptions& options) {
  Outcome outcome;
  TextStream stream(tokenizer, prompt);
  const std::set<int64_t> stops(options.stop_ids.begin(), options.stop_ids.end());
  const auto emit = [&](const std::string& piece) {
    outcome.text += piece;
    if (!json_output()) print(piece);
  };
  outcome.result = generate(model, prompt, options, [&](int64_t id) {
    if (stops.contains(id)) return false;
    emit(stream.add(id));
    return !interrupt_requested();
  });
  emit(stream.rest());
  if (!json_output() && !outcome.text.ends_with('\n')) print("\n");
  if (interrupt_requested())
    check_interrupt(
        fmt::format("{} of {} tokens were generated", outcome.result.ids.size(), flags.options.max_new_tokens));
  return outcome;
}

double rate(size_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

void run(const GenerateFlags& flags) {
  check(flags);
  force_attention_kernel(flags.kernel);
  const c10::ScalarType dtype = compute_dtype(flags.dtype);
  const c10::Device device = open_device(flags.device);
  const auto source = open_model(flags.model, "MODEL");
  const auto tokenizer = source->tokenizer();
  if (!tokenizer) {
    throw UsageError(fmt::format("{} has no tokenizer", flags.model),
                     "put tokenizer.json or tokenizer.model into the folder");
  }
  std::string prompt = flags.prompt;
  if (!flags.prompt_given) prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  const std::vector<int64_t> ids = tokenizer->encode(prompt, true);
  if (ids.empty())
    throw UsageError("the prompt is empty and this tokenizer adds no begin-of-text token", "give --prompt TEXT");

  const DecoderModel model(source, dtype, device);
  GenerateOptions options = flags.options;
  options.stop_ids = stop_ids(*source, *tokenizer);
  const Outcome outcome = produce(flags, model, *tokenizer, ids, options);
  const GenerateResult& result = outcome.result;
  const size_t decoded =
      result.ids.empty() ? 0 : result.ids.size() - 1;  // the first new token comes out of the prompt's pass
  const int64_t cached = result.kv_bytes_per_token * static_cast<int64_t>(ids.size() + decoded);
  if (json_output()) {
    print_json({{"prompt", prompt},
                {"text", outcome.text},
                {"ids", result.ids},
                {"prompt_tokens", ids.size()},
                {"new_tokens", result.ids.size()},
                {"prefill_tokens_per_second", rate(ids.size(), result.prefill_seconds)},
                {"tokens_per_second", rate(decoded, result.decode_seconds)},
                {"kv_bytes_per_token", result.kv_bytes_per_token},
                {"kv_bytes", cached}});
  } else {
    log_info(fmt::format(
        "{} prompt tokens at {:.0f} tokens/s, {} new tokens at {:.1f} tokens/s; cache {} ({} bytes per token in {})",
        ids.size(), rate(ids.size(), result.prefill_seconds), result.ids.size(), rate(decoded, result.decode_seconds),
        human_bytes(static_cast<uint64_t>(cached)), result.kv_bytes_per_token, flags.dtype));
  }
}

void add_options(CLI::App& command, GenerateFlags& flags) {
  command.add_option("MODEL", flags.model, "Hugging Face folder, cinch folder or .gguf file")
      ->required()
      ->type_name("PATH");
  command.add_option("-p,--prompt", flags.prompt, "Text to continue (default: read from stdin)")->type_name("TEXT");
  command.add_option("-n,--max-new-tokens", flags.options.max_new_tokens, "Tokens to generate")
      ->capture_default_str()
      ->type_name("INT");
  command.add_option("--temperature", flags.options.temperature, "0 = the most likely token always")
      ->capture_default_str()
      ->type_name("FLOAT");
  command.add_option("--top-p", flags.options.top_p, "Sample from the smallest set of tokens with this probability")
      ->capture_default_str()
      ->type_name("FLOAT");
  command.add_option("--seed", flags.options.seed, "Seed of the sampling")->capture_default_str()->type_name("UINT");
  command.add_option("--dtype", flags.dtype, "Type to compute in")
      ->capture_default_str()
      ->type_name("f32|bf16|f16|f64");
  command.add_option("--device", flags.device, "cpu or cuda[:i]")->capture_default_str()->type_name("DEVICE");
  add_kernel_option(command, flags.kernel);
}

}  // namespace

Command generate_command() {
  return {"generate", [](CLI::App& app) {
            auto flags = std::make_shared<GenerateFlags>();
            CLI::App* command =
                app.add_subcommand("generate", "Continue a text; prints tokens per second and cache bytes");
            add_options(*command, *flags);
            command->callback([flags, command] {
              flags->prompt_given = command->count("--prompt") > 0;
              run(*flags);
            });
          }};
}

}  // namespace cinch
