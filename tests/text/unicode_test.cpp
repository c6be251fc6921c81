#include "text/unicode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <span>

#include "core/digest.h"
#include "core/errors.h"
#include "core/json.h"
#include "tests/support/assets.h"
#include "text/regex.h"

namespace cinch {
namespace {

std::vector<uint32_t> all_code_points() {
  std::vector<uint32_t> points;
  for (uint32_t point = 0; point < 0x110000; ++point) {
    if (point < 0xD800 || point > 0xDFFF) points.push_back(point);
  }
  return points;
}

std::string as_text(const std::vector<uint32_t>& points) {
  std::string text;
  for (const uint32_t point : points) append_utf8(text, point);
  return text;
}

JsonObject golden() { return JsonObject::from_file(repo_file("tests/golden/text/unicode.json")); }

/// The code points that `pattern` matches, from a text of all of them.
std::vector<uint32_t> members(const std::string& pattern, const std::string& all) {
  std::vector<uint32_t> found;
  for (const auto& [begin, end] : Regex(pattern).matches(all)) {
    const auto points = code_points(std::string_view(all).substr(begin, end - begin));
    found.insert(found.end(), points.begin(), points.end());
  }
  return found;
}

TEST(Unicode, CharacterClassesHaveTheMembersOfHuggingFace) {
  const std::string all = as_text(all_code_points());
  const JsonObject classes = golden().object("classes");
  ASSERT_GE(classes.json().size(), 20u);
  for (const auto& [pattern, unused] : classes.json().items()) {
    const JsonObject expected = classes.object(pattern);
    const std::vector<uint32_t> found = members(pattern, all);
    EXPECT_EQ(found.size(), static_cast<size_t>(expected.integer("count"))) << pattern;
    EXPECT_EQ(sha256_hex(std::as_bytes(std::span(found))), expected.string("sha256")) << pattern;
  }
}

TEST(Unicode, NormalFormsAreThoseOfHuggingFace) {
  const JsonObject forms = golden().object("normal_forms");
  for (const auto& [name, form] : {std::pair{"NFC", NormalForm::nfc}, std::pair{"NFD", NormalForm::nfd},
                                   std::pair{"NFKC", NormalForm::nfkc}, std::pair{"NFKD", NormalForm::nfkd}}) {
    std::string text;
    for (const uint32_t point : all_code_points()) {
      const std::string alone = as_text({point});
      text += normalize_unicode(alone, form) + "\n";
      text += normalize_unicode("a\xCC\x81" + alone + "\xCC\x96\xCC\x81", form) + "\n";
    }
    EXPECT_EQ(sha256_hex(std::as_bytes(std::span(text))), forms.string(name)) << name;
  }
}

TEST(Unicode, WordBoundariesFollowTheWordClass) {
  EXPECT_EQ(Regex(R"(\b)").matches("a\xCC\x81-b").size(), 4u);  // a mark belongs to the word
  EXPECT_EQ(Regex(R"(\B)").matches("ab").size(), 1u);
}

TEST(Unicode, RubySyntaxIsTranslatedOrRefusedByName) {
  EXPECT_EQ(Regex("^b$").matches("a\nb\nc").size(), 1u);
  EXPECT_EQ(Regex("(?m:a.b)").matches("a\nb").size(), 1u);
  EXPECT_EQ(Regex("a{,2}c").matches("aac").size(), 1u);
  EXPECT_EQ(Regex("[\\u4e00-\\u9fa5]+").matches("漢字 x").size(), 1u);
  for (const char* pattern : {"a{2}+", "a{2}?", "[a[bc]]", "[a&&b]", "[[:alpha:]]", "\\Qa\\E", "[\\W_]", "a(?i)b",
                              "(?x)a", "(*ACCEPT)", "\\xE2", "\\K"}) {
    EXPECT_THROW(Regex{pattern}, UnsupportedError) << pattern;
  }
  EXPECT_THROW(Regex{"(a"}, ConfigError);
  EXPECT_THROW(Regex{"\\p{Nonsense}"}, ConfigError);
}

}  // namespace
}  // namespace cinch
