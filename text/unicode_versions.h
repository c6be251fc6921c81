// Where the Unicode tables inside Hugging Face `tokenizers` are not those of Unicode 14, the version of PCRE2 10.42:
// its regular expressions know Unicode 16, its normalizers an older version.
#pragma once

#include <cstdint>

namespace cinch {

/// The code point itself, or for one that is newer than Unicode 14 an older one of the same general category and the
/// same number of UTF-8 bytes.
uint32_t category_stand_in(uint32_t code_point);

/// True for code points that the normalizers of `tokenizers` leave alone because they are too new for them: they
/// neither decompose nor compose, and count as starters.
bool is_newer_than_normalizers(uint32_t code_point);

}  // namespace cinch
