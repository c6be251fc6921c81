#include "text/tokenizer_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <functional>

#include "core/errors.h"
#include "text/unicode.h"

namespace cinch {
namespace {

std::string replace_all(std::string_view text, const Regex& pattern, const std::string& content) {
  std::string result;
  size_t position = 0;
  for (const auto& [begin, end] : pattern.matches(text)) {
    result.append(text.substr(position, begin - position));
    result += content;
    position = end;
  }
  result.append(text.substr(position));
  return result;
}

Regex pattern_of(const JsonObject& step) {
  const JsonObject pattern = step.object("pattern");
  return pattern.has("Regex") ? Regex(pattern.string("Regex")) : Regex::literal(pattern.string("String"));
}

/// The last code point of valid UTF-8, as text.
std::string_view last_character(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

bool starts_in_word(std::string_view text) { return !text.empty() && is_word_character(first_code_point(text)); }
bool ends_in_word(std::string_view text) {
  return !text.empty() && is_word_character(first_code_point(last_character(text)));
}

/// Bytes of white space at the start of a text, and at its end.
size_t leading_space(std::string_view text) {
  size_t length = 0;
  while (length < text.size() && is_white_space(first_code_point(text.substr(length)))) {
    length += utf8_length(text[length]);
  }
  return length;
}
size_t trailing_space(std::string_view text) {
  size_t length = 0;
  while (length < text.size()) {
    const std::string_view last = last_character(text.substr(0, text.size() - length));
    if (!is_white_space(first_code_point(last))) break;
    length += last.size();
  }
  return length;
}

std::string strip_spaces(std::string_view text, bool left, bool right) {
  if (left) text.remove_prefix(leading_space(text));
  if (right) text.remove_suffix(trailing_space(text));
  return std::string(text);
}

/// "<0x0A>" -> 10; -1 for anything else.
int byte_of_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return -1;
  const char* begin = piece.data() + (piece[3] == '+' ? 4 : 3);  // Rust's from_str_radix takes "+A" for 10
  unsigned value = 0;
  const auto [end, error] = std::from_chars(begin, piece.data() + 5, value, 16);
  return error == std::errc() && end == piece.data() + 5 ? static_cast<int>(value) : -1;
}

std::vector<std::string> fall_back_to_bytes(const std::vector<std::string>& pieces) {
  std::vector<std::string> result;
  std::string bytes;
  const auto flush = [&] {
    // A run that is not valid UTF-8 becomes one replacement character per byte (tokenizers, ByteFallback).
    if (bytes.empty()) return;
    if (repair_utf8(bytes) == bytes) {
      result.push_back(bytes);
    } else {
      for (size_t i = 0; i < bytes.size(); ++i) result.emplace_back("\xEF\xBF\xBD");
    }
    bytes.clear();
  };
  for (const std::string& piece : pieces) {
    const int byte = byte_of_piece(piece);
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
    } else {
      flush();
      result.push_back(piece);
    }
  }
  flush();
  return result;
}

std::vector<std::string> join_byte_level(const std::vector<std::string>& pieces) {
  std::string bytes;
  for (const std::string& piece : pieces) {
    std::string mapped;
    bool all = true;
    for (const uint32_t point : code_points(piece)) {
      const int byte = text_to_byte(point);
      all = all && byte >= 0;
      mapped += static_cast<char>(byte);
    }
    bytes += all ? mapped : piece;  // an added token is spelled in plain text
  }
  return {repair_utf8(bytes)};
}

Decoder strip_decoder(const JsonObject& step) {
  const std::string content = step.string("content");
  const int64_t start = step.integer_or("start", 0), stop = step.integer_or("stop", 0);
  return [=](std::vector<std::string> pieces) {
    for (std::string& piece : pieces) {
      for (int64_t i = 0; i < start && piece.starts_with(content); ++i) piece.erase(0, content.size());
      for (int64_t i = 0; i < stop && piece.ends_with(content); ++i) piece.erase(piece.size() - content.size());
    }
    return pieces;
  };
}

Decoder metaspace_decoder(const JsonObject& step) {
  const Regex marks = Regex::literal(step.string_or("replacement", "▁"));
  const bool prepended =
      step.string_or("prepend_scheme", step.boolean_or("add_prefix_space", true) ? "always" : "never") != "never";
  return [=](std::vector<std::string> pieces) {
    // tokenizers drops every mark of the first piece, not only the prepended one.
    for (size_t i = 0; i < pieces.size(); ++i)
      pieces[i] = replace_all(pieces[i], marks, i == 0 && prepended ? "" : " ");
    return pieces;
  };
}

/// Special ids around the text from the "single" template.
PostProcessor read_template(const JsonObject& step) {
  PostProcessor result;
  bool seen_sequence = false;
  for (const JsonObject& part : step.objects("single")) {
    if (part.has("Sequence")) {
      if (seen_sequence || part.object("Sequence").string_or("id", "A") != "A") {
        throw UnsupportedError(fmt::format("{}: the text stands in it other than once", step.where("single")));
      }
      seen_sequence = true;
      continue;
    }
    const std::string name = part.object("SpecialToken").string("id");
    const std::vector<int64_t> ids = step.object("special_tokens").object(name).integers("ids");
    std::vector<int64_t>& side = seen_sequence ? result.suffix : result.prefix;
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (!seen_sequence) throw UnsupportedError(fmt::format("{}: the text is not in it", step.where("single")));
  return result;
}

/// The id of "cls" or "sep", written ["<s>", 0].
int64_t spelled_id(const JsonObject& step, const std::string& key) {
  const Json value = step.json().value(key, Json());
  if (!value.is_array() || value.size() != 2 || !value[0].is_string() || !value[1].is_number_integer()) {
    throw ConfigError(fmt::format("{}: expected a token and its id", step.where(key)));
  }
  return value[1].get<int64_t>();
}

}  // namespace

Normalizer make_normalizer(const std::optional<JsonObject>& step) {
  if (!step) return [](std::string text) { return text; };
  const std::string type = step->string("type");
  if (type == "NFC") return [](std::string text) { return normalize_unicode(text, NormalForm::nfc); };
  if (type == "NFD") return [](std::string text) { return normalize_unicode(text, NormalForm::nfd); };
  if (type == "NFKC") return [](std::string text) { return normalize_unicode(text, NormalForm::nfkc); };
  if (type == "NFKD") return [](std::string text) { return normalize_unicode(text, NormalForm::nfkd); };
  if (type == "Prepend") {
    return [prefix = step->string("prepend")](std::string text) { return text.empty() ? text : prefix + text; };
  }
  if (type == "Replace") {
    return [pattern = pattern_of(*step), content = step->string("content")](std::string text) {
      return replace_all(text, pattern, content);
    };
  }
  if (type == "Strip") {
    return [left = step->boolean_or("strip_left", true), right = step->boolean_or("strip_right", true)](
               std::string text) { return strip_spaces(text, left, right); };
  }
  if (type == "Sequence") {
    std::vector<Normalizer> steps;
    for (const JsonObject& inner : step->objects("normalizers")) steps.push_back(make_normalizer(inner));
    return [steps](std::string text) {
      for (const Normalizer& inner : steps) text = inner(std::move(text));
      return text;
    };
  }
  throw UnsupportedError(fmt::format("{}: unknown normalizer \"{}\"", step->where("type"), type));
}

Decoder make_decoder(const std::optional<JsonObject>& step) {
  if (!step) {
    return [](std::vector<std::string> pieces) {
      for (size_t i = 1; i < pieces.size(); ++i)
        pieces[i].insert(0, " ");  // tokenizers joins with spaces without a decoder
      return pieces;
    };
  }
  const std::string type = step->string("type");
  if (type == "ByteLevel") return [](std::vector<std::string> pieces) { return join_byte_level(pieces); };
  if (type == "ByteFallback") return [](std::vector<std::string> pieces) { return fall_back_to_bytes(pieces); };
  if (type == "Metaspace") return metaspace_decoder(*step);
  if (type == "Strip") return strip_decoder(*step);
  if (type == "Fuse") {
    return [](std::vector<std::string> pieces) {
      return std::vector<std::string>{fmt::format("{}", fmt::join(pieces, ""))};
    };
  }
  if (type == "Replace") {
    return [pattern = pattern_of(*step), content = step->string("content")](std::vector<std::string> pieces) {
      for (std::string& piece : pieces) piece = replace_all(piece, pattern, content);
      return pieces;
    };
  }
  if (type == "Sequence") {
    std::vector<Decoder> steps;
    for (const JsonObject& inner : step->objects("decoders")) steps.push_back(make_decoder(inner));
    return [steps](std::vector<std::string> pieces) {
      for (const Decoder& inner : steps) pieces = inner(std::move(pieces));
      return pieces;
    };
  }
  throw UnsupportedError(fmt::format("{}: unknown decoder \"{}\"", step->where("type"), type));
}

PostProcessor make_post_processor(const std::optional<JsonObject>& step) {
  PostProcessor result;
  if (!step) return result;
  const std::string type = step->string("type");
  if (type == "ByteLevel") return result;
  if (type == "Sequence") {
    for (const JsonObject& inner : step->objects("processors")) {
      const PostProcessor part = make_post_processor(inner);
      result.prefix.insert(result.prefix.begin(), part.prefix.begin(), part.prefix.end());
      result.suffix.insert(result.suffix.end(), part.suffix.begin(), part.suffix.end());
    }
    return result;
  }
  if (type == "RobertaProcessing" || type == "BertProcessing") {
    return {{spelled_id(*step, "cls")}, {spelled_id(*step, "sep")}};
  }
  if (type == "TemplateProcessing") return read_template(*step);
  throw UnsupportedError(fmt::format("{}: unknown post-processor \"{}\"", step->where("type"), type));
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = tokens_[i].content;
    if (!by_content_.emplace(content, i).second) continue;
    lengths_[static_cast<unsigned char>(content.front())].push_back(content.size());
  }
  for (std::vector<size_t>& lengths : lengths_) {
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
}

const AddedToken* AddedTokenFinder::match_at(std::string_view text, size_t position) const {
  for (const size_t length : lengths_[static_cast<unsigned char>(text[position])]) {
    if (length > text.size() - position) continue;
    const auto found = by_content_.find(text.substr(position, length));
    if (found != by_content_.end()) return &tokens_[found->second];
  }
  return nullptr;
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::split(std::string_view text) const {
  std::vector<Part> parts;
  size_t plain = 0;  // the start of the text that no token has taken yet
  for (size_t i = 0; i < text.size();) {
    const AddedToken* token = match_at(text, i);
    if (token == nullptr) {
      ++i;
      continue;
    }
    size_t begin = i, end = i + token->content.size();
    i = end;  // the search goes on here, even inside of white space that the token takes with it
    if (token->single_word && (ends_in_word(text.substr(0, begin)) || starts_in_word(text.substr(end)))) continue;
    if (token->strip_left) begin = begin > plain ? begin - trailing_space(text.substr(plain, begin - plain)) : plain;
    // Up to `plain` there is only white space when the token stands in what the one before it took along.
    if (token->strip_right) end = end <= plain ? plain : end + leading_space(text.substr(end));
    if (begin >= end) continue;  // nothing is left of it
    if (begin > plain) parts.push_back({text.substr(plain, begin - plain), nullptr});
    parts.push_back({text.substr(begin, end - begin), token});
    plain = end;
  }
  if (plain < text.size()) parts.push_back({text.substr(plain), nullptr});
  return parts;
}

}  // namespace cinch
