#include "text/unicode.h"

#include <utf8proc.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <unordered_map>

#include "text/unicode_versions.h"

namespace cinch {
namespace {

/// Length of the well-formed sequence at the start of `text`, or minus the length of the ill-formed maximal subpart.
int sequence_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  int length = 0;
  unsigned char low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return -1;
  }
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= text.size() || byte(i) < low || byte(i) > high) return -i;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

std::string normalize_part(std::string_view text, NormalForm form) {
  if (text.empty()) return {};
  int options = UTF8PROC_STABLE;
  options |= form == NormalForm::nfc || form == NormalForm::nfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::nfkc || form == NormalForm::nfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* mapped = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &mapped, static_cast<utf8proc_option_t>(options));
  if (length < 0) throw std::bad_alloc();
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  return {reinterpret_cast<const char*>(mapped), static_cast<size_t>(length)};
}

}  // namespace

std::string repair_utf8(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const int length = sequence_length(text);
    const auto used = static_cast<size_t>(std::abs(length));
    if (length > 0) {
      result += text.substr(0, used);
    } else {
      result += "\xEF\xBF\xBD";
    }
    text.remove_prefix(used);
  }
  return result;
}

size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

void append_utf8(std::string& text, uint32_t code_point) {
  utf8proc_uint8_t buffer[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), buffer);
  text.append(reinterpret_cast<const char*>(buffer), static_cast<size_t>(length));
}

uint32_t first_code_point(std::string_view text) {
  const size_t length = utf8_length(text[0]);
  constexpr unsigned char kLeadBits[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
  uint32_t point = static_cast<unsigned char>(text[0]) & kLeadBits[length];
  for (size_t i = 1; i < length && i < text.size(); ++i)
    point = point << 6 | (static_cast<unsigned char>(text[i]) & 0x3F);
  return point;
}

std::vector<uint32_t> code_points(std::string_view text) {
  std::vector<uint32_t> result;
  for (size_t i = 0; i < text.size();) {
    utf8proc_int32_t point = 0;
    const auto used = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + i,
                                       static_cast<utf8proc_ssize_t>(text.size() - i), &point);
    if (used <= 0) {
      ++i;
      continue;
    }
    result.push_back(static_cast<uint32_t>(point));
    i += static_cast<size_t>(used);
  }
  return result;
}

std::string normalize_unicode(std::string_view text, NormalForm form) {
  std::string result;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text[i]);
    if (length > 1 && is_newer_than_normalizers(first_code_point(text.substr(i)))) {
      result += normalize_part(text.substr(begin, i - begin), form);
      result += text.substr(i, length);
      begin = i + length;
    }
    i += length;
  }
  return result + normalize_part(text.substr(begin), form);
}

bool is_white_space(uint32_t code_point) {
  return (code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x20 || code_point == 0x85 || code_point == 0xA0 ||
         code_point == 0x1680 || (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F || code_point == 0x3000;
}

bool is_word_character(uint32_t code_point) {
  const bool other_alphabetic =
      (code_point >= 0x24B6 && code_point <= 0x24E9) || (code_point >= 0x1F130 && code_point <= 0x1F149) ||
      (code_point >= 0x1F150 && code_point <= 0x1F169) || (code_point >= 0x1F170 && code_point <= 0x1F189);
  const bool joins = code_point == 0x200C || code_point == 0x200D;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(category_stand_in(code_point)));
  const bool letter_mark_or_digit = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL;
  return other_alphabetic || joins || letter_mark_or_digit || category == UTF8PROC_CATEGORY_PC;
}

const std::array<std::string, 256>& byte_to_text() {
  static const std::array<std::string, 256> table = [] {
    std::array<std::string, 256> result;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      append_utf8(result[byte], printable ? byte : next++);
    }
    return result;
  }();
  return table;
}

int text_to_byte(uint32_t code_point) {
  static const std::unordered_map<uint32_t, int> table = [] {
    std::unordered_map<uint32_t, int> result;
    for (int byte = 0; byte < 256; ++byte)
      result[code_points(byte_to_text()[static_cast<size_t>(byte)]).front()] = byte;
    return result;
  }();
  const auto found = table.find(code_point);
  return found == table.end() ? -1 : found->second;
}

}  // namespace cinch
