#include <fmt/format.h>

#include "core/errors.h"
#include "model/gguf/gguf_mapping.h"

namespace cinch {

GgufVocabulary read_gguf_vocabulary(const GgufSource& source) {
  GgufVocabulary vocabulary;
  vocabulary.model = source.text("tokenizer.ggml.model").value_or("");
  vocabulary.pre = source.text("tokenizer.ggml.pre").value_or("");
  vocabulary.tokens = source.texts("tokenizer.ggml.tokens");
  vocabulary.merges = source.texts("tokenizer.ggml.merges");
  for (const double score : source.numbers("tokenizer.ggml.scores"))
    vocabulary.scores.push_back(static_cast<float>(score));
  for (const double type : source.numbers("tokenizer.ggml.token_type"))
    vocabulary.token_types.push_back(static_cast<int32_t>(type));
  if (vocabulary.token_types.empty()) vocabulary.token_types.assign(vocabulary.tokens.size(), 1);
  constexpr int64_t kNoToken = 0xffffffff;  // llama.cpp's -1, stored as uint32
  const auto special = [&](const char* name) {
    const auto id = source.integer(fmt::format("tokenizer.ggml.{}_token_id", name));
    return id == kNoToken ? std::nullopt : id;
  };
  vocabulary.bos_id = special("bos");
  vocabulary.eos_id = special("eos");
  vocabulary.unk_id = special("unknown");
  vocabulary.pad_id = special("padding");
  vocabulary.add_bos = source.boolean("tokenizer.ggml.add_bos_token");
  vocabulary.add_eos = source.boolean("tokenizer.ggml.add_eos_token");
  vocabulary.add_space_prefix = source.boolean("tokenizer.ggml.add_space_prefix");
  if (vocabulary.model == "llama" && !vocabulary.unk_id)
    vocabulary.unk_id = 0;  // SentencePiece's and llama.cpp's default
  const auto outside = [&](const std::optional<int64_t>& id) {
    return id && (*id < 0 || *id >= static_cast<int64_t>(vocabulary.tokens.size()));
  };
  if (outside(vocabulary.bos_id) || outside(vocabulary.eos_id) || outside(vocabulary.unk_id) ||
      outside(vocabulary.pad_id)) {
    throw ConfigError(fmt::format("{}: a special token id lies outside of the vocabulary of {}",
                                  source.files().front().string(), vocabulary.tokens.size()));
  }
  return vocabulary;
}

void add_gguf_vocabulary(const GgufVocabulary& vocabulary, int64_t vocab_size, GgufMetadata& metadata) {
  std::vector<GgufValue> tokens, scores, types, merges;
  for (int64_t id = 0; id < vocab_size; ++id) {  // the embedding may be padded beyond the tokenizer
    const bool known = id < static_cast<int64_t>(vocabulary.tokens.size());
    const auto i = static_cast<size_t>(id);
    tokens.push_back(GgufValue::string(known ? vocabulary.tokens[i] : fmt::format("[PAD{}]", id)));
    types.push_back(GgufValue::i32(known ? vocabulary.token_types[i] : 5));
    if (!vocabulary.scores.empty()) scores.push_back(GgufValue::f32(known ? vocabulary.scores[i] : -10000.0f));
  }
  for (const std::string& merge : vocabulary.merges) merges.push_back(GgufValue::string(merge));
  metadata.emplace_back("tokenizer.ggml.model", GgufValue::string(vocabulary.model));
  if (!vocabulary.pre.empty()) metadata.emplace_back("tokenizer.ggml.pre", GgufValue::string(vocabulary.pre));
  metadata.emplace_back("tokenizer.ggml.tokens", GgufValue::array(std::move(tokens)));
  if (!scores.empty()) metadata.emplace_back("tokenizer.ggml.scores", GgufValue::array(std::move(scores)));
  metadata.emplace_back("tokenizer.ggml.token_type", GgufValue::array(std::move(types)));
  if (!merges.empty()) metadata.emplace_back("tokenizer.ggml.merges", GgufValue::array(std::move(merges)));
  const auto add_id = [&](const char* key, const std::optional<int64_t>& id) {
    if (id) metadata.emplace_back(key, GgufValue::u32(static_cast<uint32_t>(*id)));
  };
  add_id("tokenizer.ggml.bos_token_id", vocabulary.bos_id);
  add_id("tokenizer.ggml.eos_token_id", vocabulary.eos_id);
  add_id("tokenizer.ggml.unknown_token_id", vocabulary.unk_id);
  add_id("tokenizer.ggml.padding_token_id", vocabulary.pad_id);
  if (vocabulary.add_bos)
    metadata.emplace_back("tokenizer.ggml.add_bos_token", GgufValue::boolean(*vocabulary.add_bos));
  if (vocabulary.add_space_prefix)
    metadata.emplace_back("tokenizer.ggml.add_space_prefix", GgufValue::boolean(*vocabulary.add_space_prefix));
}

}  // namespace cinch
