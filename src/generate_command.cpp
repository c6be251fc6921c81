#include <fmt/format.h>

#include <algorithm>
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
  std::string model, prompt, dtype = "f32", device = "cpu", kernel = "auto", kv_bits = "16";
  GenerateOptions options;
  bool prompt_given = false, no_graphs = false;
};

/// Names of --kernel that are the decode step's; others are attention kernels, which prompts and steps then take.
const std::vector<std::string> kDecodeKernels = {"attend", "mma", "sm90"};

DecodeKernel choose_kernel(const std::string& name) {
  const bool decode = std::find(kDecodeKernels.begin(), kDecodeKernels.end(), name) != kDecodeKernels.end();
  try {
    force_attention_kernel(decode ? "auto" : name);
  } catch (const UsageError& unknown) {
    throw UsageError(unknown.what(), fmt::format("{}, {}", unknown.help(), fmt::join(kDecodeKernels, ", ")));
  }
  return decode || name == "auto" ? parse_decode_kernel(name) : DecodeKernel::attend;
}

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

Outcome produce(const GenerateFlags& flags, DecodeSession& session, const Tokenizer& tokenizer,
                const std::vector<int64_t>& prompt, const GenerateOptions& options) {
  Outcome outcome;
  TextStream stream(tokenizer, prompt);
  const std::set<int64_t> stops(options.stop_ids.begin(), options.stop_ids.end());
  const auto emit = [&](const std::string& piece) {
    outcome.text += piece;
    if (!json_output()) print(piece);
  };
  outcome.result = generate(session, prompt, options, [&](int64_t id) {
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

struct Summary {
  const GenerateFlags& flags;
  const std::string& prompt;
  size_t prompt_tokens;
  const Outcome& outcome;
  const DecodeSession& session;
};

/// "int8 cache of 1.2 MB (96 bytes per token)"
std::string cache_text(const Summary& s, int64_t bytes) {
  const bool packed = s.flags.kv_bits != "16";
  const std::string type = packed ? name_of(parse_cache_format(s.flags.kv_bits)) : s.flags.dtype;
  return fmt::format("{} cache {} ({} bytes per token{})", type, human_bytes(static_cast<uint64_t>(bytes)),
                     s.session.kv_bytes_per_token(),
                     s.session.emulates_cache() ? "; packed so it would be, here it is emulated" : "");
}

void report(const Summary& s) {
  const GenerateResult& result = s.outcome.result;
  // The first new token comes out of the prompt's pass.
  const size_t decoded = result.ids.empty() ? 0 : result.ids.size() - 1;
  const int64_t bytes = s.session.kv_bytes(static_cast<int64_t>(s.prompt_tokens + decoded));
  const bool graphs = s.session.uses_graph();
  if (json_output()) {
    print_json({{"prompt", s.prompt},
                {"text", s.outcome.text},
                {"ids", result.ids},
                {"prompt_tokens", s.prompt_tokens},
                {"new_tokens", result.ids.size()},
                {"prefill_tokens_per_second", rate(s.prompt_tokens, result.prefill_seconds)},
                {"tokens_per_second", rate(decoded, result.decode_seconds)},
                {"decode_kernel", s.session.kernel_name()},
                {"decode_kernels", s.session.explain()},
                {"cuda_graphs", graphs},
                {"kv_bits", s.flags.kv_bits},
                {"kv_emulated", s.session.emulates_cache()},
                {"kv_bytes_per_token", s.session.kv_bytes_per_token()},
                {"kv_bytes", bytes}});
    return;
  }
  log_info(fmt::format("{} prompt tokens at {:.0f} tokens/s, {} new tokens at {:.1f} tokens/s by {}{}; {}",
                       s.prompt_tokens, rate(s.prompt_tokens, result.prefill_seconds), result.ids.size(),
                       rate(decoded, result.decode_seconds), s.session.kernel_name(), graphs ? " in a CUDA graph" : "",
                       cache_text(s, bytes)));
}

/// What each layer runs; on a GPU without being asked where that is not a decode kernel.
void explain(const DecodeSession& session, c10::Device device) {
  const auto& choices = session.choices();
  const bool without = std::any_of(choices.begin(), choices.end(),
                                   [](const DecodeChoice& choice) { return choice.kernel == DecodeKernel::attend; });
  for (const std::string& line : session.explain()) {
    if (device.is_cuda() && without) {
      log_info("decode: " + line);
    } else {
      log_detail("decode: " + line);
    }
  }
}

void run(const GenerateFlags& flags) {
  check(flags);
  const DecodeKernel kernel = choose_kernel(flags.kernel);
  const CacheFormat format = parse_cache_format(flags.kv_bits);
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
  DecodeSession session(model,
                        {.max_tokens = static_cast<int64_t>(ids.size()) + flags.options.max_new_tokens,
                         .cache_format = format,
                         .kernel = kernel,
                         .graphs = !flags.no_graphs},
                        device.is_cuda() ? plugin_decode_functions() : nullptr);
  explain(session, device);
  GenerateOptions options = flags.options;
  options.stop_ids = stop_ids(*source, *tokenizer);
  const Outcome outcome = produce(flags, session, *tokenizer, ids, options);
  report({flags, prompt, ids.size(), outcome, session});
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
  add_kernel_option(command, flags.kernel, kDecodeKernels);
  command
      .add_option("--kv-bits", flags.kv_bits,
                  "Cache of latent layers: 16 bits, or packed with scales (emulated where no decode kernel runs)")
      ->capture_default_str()
      ->type_name("16|8|fp8|4");
  command.add_flag("--no-graphs", flags.no_graphs, "On CUDA: launch every kernel of a step by itself");
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
