// The form of Hugging Face's tokenizer.json, which every BPE tokenizer here is built from (GGUF vocabularies are
// brought into it first).
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "core/json.h"
#include "text/tokenizer.h"

namespace cinch {

/// What tokenizer.json itself does not say.
struct TokenizerHints {
  std::string bos, eos;  // spellings; empty = not given
};

/// Reads tokenizer_config.json and special_tokens_map.json where they exist.
TokenizerHints read_tokenizer_hints(const std::filesystem::path& folder);
/// Truncation and padding in the file are not applied, as transformers does unless a call asks for them. Throws
/// ConfigError on a bad file and UnsupportedError naming the component on an unknown one.
std::unique_ptr<Tokenizer> make_json_tokenizer(Json json, const std::string& origin, const TokenizerHints& hints);

}  // namespace cinch
