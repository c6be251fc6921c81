// UTF-8 and Unicode helpers of the tokenizers.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cinch {

/// Replaces every maximal ill-formed part by U+FFFD (Unicode chapter 3, "substitution of maximal subparts"; as Python
/// and Rust decode).
std::string repair_utf8(std::string_view text);
/// Bytes of the code point that starts at `lead` in valid UTF-8.
size_t utf8_length(char lead);
void append_utf8(std::string& text, uint32_t code_point);
/// The first code point of valid UTF-8, which must not be empty.
uint32_t first_code_point(std::string_view text);
/// Code points of valid UTF-8.
std::vector<uint32_t> code_points(std::string_view text);

enum class NormalForm { nfc, nfd, nfkc, nfkd };
/// As `tokenizers` normalizes: code points that are too new for it stay as they are. Throws std::bad_alloc.
std::string normalize_unicode(std::string_view text, NormalForm form);

bool is_white_space(uint32_t code_point);     // the Unicode property White_Space
bool is_word_character(uint32_t code_point);  // \w of Unicode TR 18, as Rust's regex has it

/// GPT-2's printable stand-ins for the 256 bytes: byte -> UTF-8, and back (-1 when the code point stands for no byte).
const std::array<std::string, 256>& byte_to_text();
int text_to_byte(uint32_t code_point);

}  // namespace cinch
