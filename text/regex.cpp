#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>

#include "core/errors.h"
#include "text/unicode.h"

namespace cinch {

struct Regex::Code {
  pcre2_code* value = nullptr;
  ~Code() { pcre2_code_free(value); }
};

Regex::Regex(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->value = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                              &error, &offset, nullptr);
  if (code->value == nullptr) {
    std::array<PCRE2_UCHAR, 200> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    throw ConfigError(fmt::format("regular expression \"{}\": {} at {}", pattern,
                                  reinterpret_cast<const char*>(message.data()), offset));
  }
  pcre2_jit_compile(code->value, PCRE2_JIT_COMPLETE);  // without JIT support matching is only slower
  code_ = std::move(code);
}

Regex Regex::literal(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) pattern += '\\';
    pattern += c;
  }
  return Regex(pattern);
}

std::vector<std::pair<size_t, size_t>> Regex::matches(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code_->value, nullptr), &pcre2_match_data_free);
  if (!data) throw std::bad_alloc();
  std::vector<std::pair<size_t, size_t>> result;
  size_t start = 0;
  while (start < text.size()) {
    const int found = pcre2_match(code_->value, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                                  PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0)
      throw ConfigError(fmt::format("a regular expression of the tokenizer fails to match (PCRE2 error {})", found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    if (range[1] > range[0]) {
      result.emplace_back(range[0], range[1]);
      start = range[1];
    } else {
      start = range[1] + utf8_length(text[range[1] < text.size() ? range[1] : 0]);
    }
  }
  return result;
}

}  // namespace cinch
