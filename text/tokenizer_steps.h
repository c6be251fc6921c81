// The steps around BPE in a tokenizer.json: normalizers, pre-tokenizers, post-processors, decoders and added tokens.
// Each `make_` reads its JSON form and throws UnsupportedError naming a component or option that cinch does not know.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/json.h"
#include "text/bpe.h"
#include "text/regex.h"

namespace cinch {

/// Valid UTF-8 in, valid UTF-8 out.
using Normalizer = std::function<std::string(std::string)>;
/// A part of the text on its way to words.
struct Piece {
  std::string text;       // never empty
  bool at_start = false;  // begins where the whole input begins
};
using PreTokenizer = std::function<std::vector<Piece>(std::vector<Piece>)>;
/// Token spellings to text parts.
using Decoder = std::function<std::vector<std::string>(std::vector<std::string>)>;

Normalizer make_normalizer(const std::optional<JsonObject>& step);
PreTokenizer make_pre_tokenizer(const std::optional<JsonObject>& step);
Decoder make_decoder(const std::optional<JsonObject>& step);

/// Special ids put before and after a single sequence.
struct PostProcessor {
  std::vector<int64_t> prefix, suffix;
};
PostProcessor make_post_processor(const std::optional<JsonObject>& step);

struct AddedToken {
  std::string content;
  int64_t id = 0;
  bool special = false, single_word = false, strip_left = false, strip_right = false, normalized = false;
};

/// Finds added tokens in text as `tokenizers` does: the leftmost longest matches, of which those that break a word they
/// may not break are then dropped.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);
  /// Parts of `text` in order: either plain text (token == nullptr) or a token.
  struct Part {
    std::string_view text;
    const AddedToken* token;
  };
  std::vector<Part> split(std::string_view text) const;

 private:
  const AddedToken* match_at(std::string_view text, size_t position) const;
  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, size_t, StringHash, std::equal_to<>> by_content_;
  std::array<std::vector<size_t>, 256> lengths_;  // of the tokens that begin with a byte, longest first
};

}  // namespace cinch
