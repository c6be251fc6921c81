#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include "core/errors.h"
#include "text/tokenizer.h"
#include "text/tokenizer_steps.h"
#include "text/unicode.h"

namespace cinch {
namespace {

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::filesystem::path& file) : finder_({}) {
    const auto status = processor_.Load(file.string());
    if (!status.ok()) throw ConfigError(fmt::format("{}: not a SentencePiece model", file.string()));
    std::vector<AddedToken> control;
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IsControl(id)) control.push_back({processor_.IdToPiece(id), id, true, false, false, false, false});
    }
    finder_ = AddedTokenFinder(std::move(control));
  }

  std::vector<int64_t> encode(std::string_view text, bool add_special) const override {
    std::vector<int64_t> ids;
    if (add_special && bos_id()) ids.push_back(*bos_id());
    const std::string valid = repair_utf8(text);
    for (const auto& part : finder_.split(valid)) {
      if (part.token != nullptr) {
        ids.push_back(part.token->id);
        continue;
      }
      std::vector<int> pieces;
      const auto status = processor_.Encode({part.text.data(), part.text.size()}, &pieces);
      if (!status.ok()) throw Error(fmt::format("SentencePiece cannot encode a text: {}", status.ToString()));
      ids.insert(ids.end(), pieces.begin(), pieces.end());
    }
    return ids;
  }

  std::string decode(std::span<const int64_t> ids, bool skip_special) const override {
    std::string text;
    std::vector<int> plain;
    const auto flush = [&] {
      std::string part;
      if (!plain.empty() && processor_.Decode(plain, &part).ok()) text += part;
      plain.clear();
    };
    for (const int64_t id : ids) {
      if (id < 0 || id >= vocab_size()) continue;
      if (!processor_.IsControl(static_cast<int>(id))) {
        plain.push_back(static_cast<int>(id));
      } else if (!skip_special) {
        flush();
        text += piece(id);
      }
    }
    flush();
    return text;
  }

  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  std::optional<int64_t> bos_id() const override { return valid(processor_.bos_id()); }
  std::optional<int64_t> eos_id() const override { return valid(processor_.eos_id()); }
  std::string piece(int64_t id) const override {
    return id >= 0 && id < vocab_size() ? processor_.IdToPiece(static_cast<int>(id)) : "";
  }
  std::optional<int64_t> id_of(std::string_view text) const override {
    const int id = processor_.PieceToId({text.data(), text.size()});
    return processor_.IdToPiece(id) == text ? valid(id) : std::nullopt;
  }

 private:
  static std::optional<int64_t> valid(int id) { return id >= 0 ? std::optional<int64_t>(id) : std::nullopt; }

  sentencepiece::SentencePieceProcessor processor_;
  AddedTokenFinder finder_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file) {
  return std::make_unique<SentencePieceTokenizer>(file);
}

GgufVocabulary sentencepiece_vocabulary(const std::filesystem::path& file) {
  sentencepiece::SentencePieceProcessor processor;
  const auto status = processor.Load(file.string());
  if (!status.ok()) throw ConfigError(fmt::format("{}: not a SentencePiece model", file.string()));
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    vocabulary.tokens.push_back(processor.IdToPiece(id));
    vocabulary.scores.push_back(processor.GetScore(id));
    vocabulary.token_types.push_back(processor.IsUnknown(id)   ? 2
                                     : processor.IsControl(id) ? 3
                                     : processor.IsByte(id)    ? 6
                                     : processor.IsUnused(id)  ? 5
                                                               : 1);
  }
  const auto id_or_none = [](int id) { return id >= 0 ? std::optional<int64_t>(id) : std::nullopt; };
  vocabulary.bos_id = id_or_none(processor.bos_id());
  vocabulary.eos_id = id_or_none(processor.eos_id());
  vocabulary.unk_id = id_or_none(processor.unk_id());
  vocabulary.pad_id = id_or_none(processor.pad_id());
  vocabulary.add_bos = true;
  vocabulary.add_eos = false;
  return vocabulary;
}

}  // namespace cinch
