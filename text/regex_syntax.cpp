#include "text/regex_syntax.h"

#include <fmt/format.h>

#include <cctype>
#include <string_view>

#include "core/errors.h"
#include "text/unicode.h"

namespace cinch {
namespace {

// Oniguruma's \w is Alphabetic, marks, decimal numbers and connector punctuation; PCRE2's is letters, numbers and "_".
constexpr std::string_view kWord =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";
// Outside of brackets it takes the superscripts and fractions of Latin-1 too (measured over all code points).
constexpr std::string_view kLatinNumbers = R"(\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE})";
constexpr std::string_view kHexDigit = "0-9A-Fa-f";
constexpr std::string_view kSameEscapes = "dDsSnrtfaeAzZRX";  // the same meaning in both dialects, outside of a class
constexpr std::string_view kSameInClass = "dDsSnrtfaeb";

class Translator {
 public:
  explicit Translator(const std::string& pattern) : text_(pattern) {}

  std::string run() {
    while (at_ < text_.size()) item();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view construct) const {
    throw UnsupportedError(
        fmt::format("regular expression \"{}\": \"{}\" at byte {} is not supported", text_, construct, at_));
  }
  bool ahead(std::string_view what) const { return std::string_view(text_).substr(at_).starts_with(what); }
  void copy(size_t count) {
    out_.append(text_, at_, count);
    at_ += count;
  }

  void item() {
    switch (text_[at_]) {
      case '\\':
        return escape(false);
      case '[':
        return character_class();
      case '(':
        return group();
      case '{':
        return interval();
      default:
        copy(1);
    }
  }

  void escape(bool in_class) {
    if (at_ + 1 >= text_.size()) refuse("\\");
    const char letter = text_[at_ + 1];
    if (letter == 'p' || letter == 'P') return property();
    if (letter == 'u' || letter == 'x') return code_point(letter == 'u');
    if (letter == 'w' || letter == 'W')
      return shorthand(std::string(kWord).append(in_class ? "" : kLatinNumbers), letter == 'W', in_class);
    if (letter == 'h' || letter == 'H') return shorthand(kHexDigit, letter == 'H', in_class);
    if (!in_class && (letter == 'b' || letter == 'B')) return boundary(letter == 'B');
    if (letter == 'v') {
      out_ += "\\x0B";  // all vertical space in PCRE2
      at_ += 2;
      return;
    }
    const bool plain = !std::isalnum(static_cast<unsigned char>(letter));
    const bool reference = !in_class && letter >= '1' && letter <= '9';
    const bool same = (in_class ? kSameInClass : kSameEscapes).find(letter) != std::string_view::npos;
    if (!plain && !reference && !same) refuse(text_.substr(at_, 2));
    copy(1 + utf8_length(letter));
  }

  void shorthand(std::string_view members, bool negated, bool in_class) {
    if (in_class && negated) refuse(text_.substr(at_, 2));
    out_ += in_class ? std::string(members) : fmt::format("[{}{}]", negated ? "^" : "", members);
    at_ += 2;
  }

  void boundary(bool negated) {
    const std::string inside = fmt::format("[{}{}]", kWord, kLatinNumbers);
    out_ += negated ? fmt::format("(?:(?<={0})(?={0})|(?<!{0})(?!{0}))", inside)
                    : fmt::format("(?:(?<={0})(?!{0})|(?<!{0})(?={0}))", inside);
    at_ += 2;
  }

  /// General categories are spelled alike; other names are scripts, which PCRE2 widens to script extensions unless
  /// told.
  void property() {
    const size_t end = text_.find('}', at_);
    if (!ahead("\\p{") && !ahead("\\P{")) refuse(text_.substr(at_, 2));
    if (end == std::string::npos) refuse(text_.substr(at_));
    std::string name = text_.substr(at_ + 3, end - at_ - 3);
    bool negated = text_[at_ + 1] == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.erase(0, 1);
    }
    if (name.size() > 2) name.insert(0, "sc:");
    out_ += fmt::format("\\{}{{{}}}", negated ? 'P' : 'p', name);
    at_ = end + 1;
  }

  void code_point(bool four_digits) {
    if (ahead("\\x{")) {
      const size_t end = text_.find('}', at_);
      if (end == std::string::npos) refuse(text_.substr(at_));
      return copy(end + 1 - at_);
    }
    const size_t digits = four_digits ? 4 : 2;
    const std::string value = text_.substr(at_ + 2, digits);
    bool all_hex = value.size() == digits;
    for (const char c : value) all_hex = all_hex && std::isxdigit(static_cast<unsigned char>(c));
    // \x80 and above is one byte of a UTF-8 sequence in Oniguruma.
    if (!all_hex || (!four_digits && value[0] >= '8')) refuse(text_.substr(at_, 2 + digits));
    out_ += fmt::format("\\x{{{}}}", value);
    at_ += 2 + digits;
  }

  void character_class() {
    copy(1);
    if (ahead("^")) copy(1);
    if (ahead("]")) copy(1);
    while (at_ < text_.size() && text_[at_] != ']') {
      if (text_[at_] == '[' || ahead("&&")) refuse(text_.substr(at_, 2));
      if (text_[at_] == '\\') {
        escape(true);
      } else {
        copy(1);
      }
    }
    if (at_ == text_.size()) refuse("[");
    copy(1);
  }

  void group() {
    if (ahead("(*")) refuse("(*");
    if (!ahead("(?")) return copy(1);
    for (const std::string_view same : {"(?:", "(?=", "(?!", "(?>", "(?<"}) {
      if (ahead(same)) return copy(same.size());
    }
    const size_t end = text_.find_first_not_of("im-", at_ + 2);
    const bool whole = end != std::string::npos && text_[end] == ')' && at_ == 0;
    if (end == std::string::npos || (text_[end] != ':' && !whole)) refuse(text_.substr(at_, 4));
    for (; at_ <= end; ++at_) out_ += text_[at_] == 'm' ? 's' : text_[at_];  // Ruby's m lets "." match a line end
  }

  void interval() {
    const size_t end = text_.find_first_not_of("0123456789,", at_ + 1);
    const bool counted = end != std::string::npos && text_[end] == '}' && end > at_ + 1;
    if (!counted) return copy(1);
    const std::string bounds = text_.substr(at_ + 1, end - at_ - 1);
    const char next = end + 1 < text_.size() ? text_[end + 1] : '\0';
    const bool exact = bounds.find(',') == std::string::npos;
    // Ruby repeats the whole again for "{n}+" and makes it optional for "{n}?".
    if (next == '+' || (exact && next == '?')) refuse(text_.substr(at_, end + 2 - at_));
    out_ += bounds.starts_with(',') ? fmt::format("{{0{}}}", bounds) : fmt::format("{{{}}}", bounds);
    at_ = end + 1;
  }

  const std::string& text_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string pcre2_syntax(const std::string& pattern) { return Translator(pattern).run(); }

}  // namespace cinch
