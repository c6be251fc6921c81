// Perl-compatible Unicode regular expressions, compiled once.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cinch {

class Regex {
 public:
  /// Throws ConfigError with the position of the fault.
  explicit Regex(const std::string& pattern);
  /// A pattern that matches `text` literally.
  static Regex literal(std::string_view text);

  /// All non-overlapping, non-empty matches in valid UTF-8, as [begin, end) bytes.
  std::vector<std::pair<size_t, size_t>> matches(std::string_view text) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace cinch
