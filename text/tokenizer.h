// Text to token ids and back. Implementations: byte-level BPE and SentencePiece-style BPE from tokenizer.json,
// tokenizer.model through libsentencepiece, and the vocabularies inside GGUF files. Ids equal those of Hugging Face
// `tokenizers` / llama.cpp for the same file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cinch {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Ids of `text`. Special tokens written in the text ("<|im_start|>") are recognised. `add_special`: BOS/EOS as the
  /// tokenizer's own post-processor adds them. Invalid UTF-8 is replaced by U+FFFD as Rust's lossy conversion does.
  virtual std::vector<int64_t> encode(std::string_view text, bool add_special) const = 0;
  /// Text of `ids`; special tokens are left out when `skip_special`.
  virtual std::string decode(std::span<const int64_t> ids, bool skip_special) const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual std::optional<int64_t> bos_id() const = 0;
  virtual std::optional<int64_t> eos_id() const = 0;
  /// The spelling of one id as stored ("Ġthe", "▁the", "<0x0A>").
  virtual std::string piece(int64_t id) const = 0;
  virtual std::optional<int64_t> id_of(std::string_view piece) const = 0;
};

/// The vocabulary of a GGUF file, spelled out so that this folder need not know the file format (keys
/// tokenizer.ggml.*).
struct GgufVocabulary {
  std::string model;  // "llama" (SentencePiece) or "gpt2" (byte-level BPE)
  std::string pre;    // pre-tokenizer name for "gpt2"
  std::vector<std::string> tokens;
  std::vector<float> scores;         // "llama"
  std::vector<int32_t> token_types;  // 1 normal, 2 unknown, 3 control, 4 user defined, 6 byte
  std::vector<std::string> merges;   // "gpt2"
  std::optional<int64_t> bos_id, eos_id, unk_id, pad_id;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

/// From a folder: tokenizer.json first, then tokenizer.model; nullptr when the folder has neither. Throws ConfigError
/// on a bad file and UnsupportedError naming the component on an unknown one.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder);
std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& file);
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file);
std::unique_ptr<Tokenizer> make_gguf_tokenizer(const GgufVocabulary& vocabulary);

/// The GGUF form of a tokenizer folder, for the GGUF writer. Throws UnsupportedError when there is none.
GgufVocabulary gguf_vocabulary(const std::filesystem::path& folder);
GgufVocabulary sentencepiece_vocabulary(const std::filesystem::path& file);
/// tokenizer.json text of a GGUF vocabulary, so that converted folders load in Hugging Face transformers.
std::string tokenizer_json_of(const GgufVocabulary& vocabulary);

}  // namespace cinch
