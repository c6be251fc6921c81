// Regular expressions with the meaning that they have in Hugging Face `tokenizers` (Oniguruma, Unicode 16), compiled
// once and run by PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cinch {

class Regex {
 public:
  /// Throws ConfigError with the position of a fault, UnsupportedError naming a construct that is not translated.
  explicit Regex(const std::string& pattern);
  /// A pattern that matches `text` literally.
  static Regex literal(std::string_view text);

  /// All non-overlapping matches in valid UTF-8, as [begin, end) bytes. A match may be empty, but not at the end of the
  /// one before. Throws ConfigError when the expression needs more steps or memory than PCRE2 allows.
  std::vector<std::pair<size_t, size_t>> matches(std::string_view text) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  static std::shared_ptr<Code> compile(const std::string& pattern, const std::string& shown, uint32_t options);
  std::shared_ptr<const Code> code_;
};

}  // namespace cinch
