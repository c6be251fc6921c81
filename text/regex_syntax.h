// The regular expressions of tokenizer.json are written for Oniguruma (Ruby syntax); PCRE2 reads another dialect.
#pragma once

#include <string>

namespace cinch {

/// The same expression for PCRE2 with UTF, UCP and MULTILINE. Throws UnsupportedError naming a construct whose meaning
/// differs and has no translation here.
std::string pcre2_syntax(const std::string& pattern);

}  // namespace cinch
