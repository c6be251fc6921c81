#include <fmt/format.h>

#include <memory>
#include <optional>

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
  int64_t bos = -1, eot = -1;  // below 0: not given
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

std::optional<int64_t> mark(const char* flag, int64_t id, int64_t vocab_size) {
  if (id < 0) return std::nullopt;
  if (id >= vocab_size)
    throw UsageError(fmt::format("{}: id {} is not in the model's vocabulary of {}", flag, id, vocab_size));
  return id;
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
  const int64_t vocab_size = named.tokenizer->vocab_size();
  const DocumentMarks marks{mark("--bos", flags.bos, vocab_size), mark("--eot", flags.eot, vocab_size)};
  TokenDataset dataset{.ids = {}, .vocab_size = vocab_size, .tokenizer_digest = named.digest};
  Progress progress({.phase = "tokenize", .unit = "files", .total = flags.paths.size() - 1});
  for (size_t i = 0; i + 1 < flags.paths.size(); ++i) {
    check_interrupt();
    const TokenDataset part = tokenize_documents(*named.tokenizer, flags.paths[i], marks);
    append_tokens(dataset, part, 0, part.ids.size());
    progress.advance();
  }
  progress.finish();
  write_token_dataset(output, dataset);
  if (json_output()) {
    print_json({{"output", output.string()},
                {"tokens", dataset.ids.size()},
                {"documents", dataset.documents.size()},
                {"vocab_size", dataset.vocab_size}});
  } else {
    const size_t documents = dataset.documents.size();
    print(fmt::format("{}: {} tokens of a vocabulary of {}, {} document{}\n", output.string(), dataset.ids.size(),
                      dataset.vocab_size, documents, documents == 1 ? "" : "s"));
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
            command
                ->add_option("--bos", flags->bos,
                             "Id that every document begins with: put before texts; documents of id files begin at it")
                ->check(CLI::NonNegativeNumber)
                ->type_name("ID");
            command
                ->add_option("--eot", flags->eot,
                             "Id that every document ends with: put behind texts; documents of id files end with it")
                ->check(CLI::NonNegativeNumber)
                ->type_name("ID");
            command->add_flag("--force", flags->force, "Replace an existing OUT.h5");
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
