#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <optional>

#include "core/errors.h"
#include "text/regex_syntax.h"
#include "text/unicode.h"
#include "text/unicode_versions.h"

namespace cinch {
namespace {

constexpr size_t kFirstStackBytes = size_t{32} << 10;
constexpr size_t kMostStackBytes = size_t{64} << 20;
constexpr uint32_t kMongolianVowelSeparator = 0x180E;  // white space for PCRE2, a format character for Unicode
constexpr uint32_t kZeroWidthSpace = 0x200B;           // a format character for both

/// What PCRE2 is to see in place of a code point that it takes for another kind than Oniguruma does.
uint32_t seen_as(uint32_t code_point) {
  return code_point == kMongolianVowelSeparator ? kZeroWidthSpace : category_stand_in(code_point);
}

/// `text` with the code points replaced that PCRE2 would misjudge, at the same offsets; nothing when there are none.
std::optional<std::string> seen_by_pcre2(std::string_view text) {
  std::optional<std::string> copy;
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text[i]);
    if (length >= 3) {  // all of them are above U+0800
      const uint32_t point = first_code_point(text.substr(i)), seen = seen_as(point);
      if (seen != point) {
        if (!copy) copy = std::string(text);
        std::string bytes;
        append_utf8(bytes, seen);
        copy->replace(i, length, bytes);
      }
    }
    i += length;
  }
  return copy;
}

using MatchData = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;
using MatchContext = std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)>;
using JitStack = std::unique_ptr<pcre2_jit_stack, decltype(&pcre2_jit_stack_free)>;

/// Nested repeats over long texts need more than the 32 KiB of stack that PCRE2 starts with. One per thread.
pcre2_match_context* match_context() {
  thread_local const JitStack stack(pcre2_jit_stack_create(kFirstStackBytes, kMostStackBytes, nullptr),
                                    &pcre2_jit_stack_free);
  thread_local const MatchContext context = [] {
    MatchContext made(pcre2_match_context_create(nullptr), &pcre2_match_context_free);
    if (made && stack) pcre2_jit_stack_assign(made.get(), nullptr, stack.get());
    return made;
  }();
  return context.get();
}

}  // namespace

struct Regex::Code {
  pcre2_code* value = nullptr;
  std::string pattern;         // as written, for messages
  bool replace_newer = false;  // whether texts are shown to PCRE2 through seen_by_pcre2
  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(value); }
};

std::shared_ptr<Regex::Code> Regex::compile(const std::string& pattern, const std::string& shown, uint32_t options) {
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_bsr(context.get(), PCRE2_BSR_UNICODE);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->pattern = shown;
  code->value = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | options, &error,
                              &offset, context.get());
  if (code->value == nullptr) {
    std::array<PCRE2_UCHAR, 200> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    throw ConfigError(fmt::format("regular expression \"{}\": {} at {}", shown,
                                  reinterpret_cast<const char*>(message.data()), offset));
  }
  pcre2_jit_compile(code->value, PCRE2_JIT_COMPLETE);  // without JIT support matching is only slower
  return code;
}

Regex::Regex(const std::string& pattern) {
  auto code = compile(pcre2_syntax(pattern), pattern, PCRE2_UCP | PCRE2_MULTILINE);
  // A pattern that spells such a code point itself must meet it unchanged.
  code->replace_newer = !seen_by_pcre2(pattern);
  code_ = std::move(code);
}

Regex Regex::literal(std::string_view text) {
  return Regex(compile(std::string(text), std::string(text), PCRE2_LITERAL));
}

std::vector<std::pair<size_t, size_t>> Regex::matches(std::string_view text) const {
  const std::optional<std::string> copy = code_->replace_newer ? seen_by_pcre2(text) : std::nullopt;
  const std::string_view subject = copy ? std::string_view(*copy) : text;
  const MatchData data(pcre2_match_data_create_from_pattern(code_->value, nullptr), &pcre2_match_data_free);
  if (!data) throw std::bad_alloc();
  std::vector<std::pair<size_t, size_t>> result;
  for (size_t start = 0; start <= subject.size();) {
    const int found = pcre2_match(code_->value, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), start,
                                  PCRE2_NO_UTF_CHECK, data.get(), match_context());
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      throw ConfigError(fmt::format("regular expression \"{}\" fails to match a text of {} bytes (PCRE2 error {})",
                                    code_->pattern, text.size(), found));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    if (range[1] == range[0] && !result.empty() && result.back().second == range[1]) {
      start += start < subject.size() ? utf8_length(subject[start]) : 1;
      continue;
    }
    result.emplace_back(range[0], range[1]);
    start = range[1];
  }
  return result;
}

}  // namespace cinch
