#include <fmt/format.h>

#include <memory>

#include "core/digest.h"
#include "core/errors.h"
#include "core/progress.h"
#include "src/command_list.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "text/corpus.h"
#include "text/token_dataset.h"

namespace cinch {
namespace {

struct TokenizeFlags {
  std::vector<std::string> paths;  // texts, then the output
  std::string model;
  bool force = false;
};

struct NamedTokenizer {
  std::unique_ptr<Tokenizer> tokenizer;
  std::string digest;
};

NamedTokenizer open_tokenizer(const std::filesystem::path& model) {
  NamedTokenizer result;
  if (std::filesystem::is_directory(model)) {
    result.tokenizer = load_tokenizer(model);
    for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
      if (result.digest.empty() && std::filesystem::exists(model / name))
        result.digest = sha256_hex_of_file(model / name);
    }
  } else {
    const auto source = open_model(model.string(), "--model");
    result.tokenizer = source->tokenizer();
    const auto files = source->side_files();
    if (const auto found = files.find("tokenizer.json"); found != files.end()) {
      result.digest = sha256_hex(std::as_bytes(std::span(found->second)));
    }
  }
  if (!result.tokenizer) {
    throw UsageError(fmt::format("--model: {} has no tokenizer", model.string()),
                     "a folder with tokenizer.json or tokenizer.model, or a .gguf file");
  }
  return result;
}

void run(const TokenizeFlags& flags) {
  const std::filesystem::path output = flags.paths.back();
  if (output.extension() != ".h5") {
    throw UsageError(fmt::format("OUT must end in .h5, found {}", output.string()),
                     "cinch tokenize TEXT... OUT.h5 --model MODEL");
  }
  if (std::filesystem::exists(output) && !flags.force) {
    throw UsageError(fmt::format("{} exists already", output.string()), "add --force to replace it");
  }
  if (!std::filesystem::exists(flags.model))
    throw UsageError(fmt::format("--model: no such file or folder: {}", flags.model));
  for (size_t i = 0; i + 1 < flags.paths.size(); ++i) {
    if (!std::filesystem::exists(flags.paths[i]))
      throw UsageError(fmt::format("TEXT: no such file or folder: {}", flags.paths[i]));
  }
  const NamedTokenizer named = open_tokenizer(flags.model);
  TokenDataset dataset{.ids = {}, .vocab_size = named.tokenizer->vocab_size(), .tokenizer_digest = named.digest};
  Progress progress({.phase = "tokenize", .unit = "files", .total = flags.paths.size() - 1});
  for (size_t i = 0; i + 1 < flags.paths.size(); ++i) {
    check_interrupt();
    const auto ids = tokenize_corpus(*named.tokenizer, flags.paths[i]);
    dataset.ids.insert(dataset.ids.end(), ids.begin(), ids.end());
    progress.advance();
  }
  progress.finish();
  write_token_dataset(output, dataset);
  if (json_output()) {
    print_json({{"output", output.string()}, {"tokens", dataset.ids.size()}, {"vocab_size", dataset.vocab_size}});
  } else {
    print(
        fmt::format("{}: {} tokens of a vocabulary of {}\n", output.string(), dataset.ids.size(), dataset.vocab_size));
  }
}

}  // namespace

Command tokenize_command() {
  return {"tokenize", [](CLI::App& app) {
            auto flags = std::make_shared<TokenizeFlags>();
            CLI::App* command = app.add_subcommand(
                "tokenize", "Turn texts into a token dataset: cinch tokenize TEXT... OUT.h5 --model MODEL");
            command->add_option("TEXT", flags->paths, "Texts (.txt, .jsonl, folders), then the .h5 file to write")
                ->required()
                ->expected(2, CLI::detail::expected_max_vector_size)
                ->type_name("PATH");
            command->add_option("--model", flags->model, "Model folder or .gguf file whose tokenizer is used")
                ->required()
                ->type_name("PATH");
            command->add_flag("--force", flags->force, "Replace an existing OUT.h5");
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
