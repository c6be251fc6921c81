#include <fmt/format.h>

#include <algorithm>

#include "core/errors.h"
#include "text/tokenizer_steps.h"
#include "text/unicode.h"

namespace cinch {
namespace {

// GPT-2's word pattern (openai/gpt-2, encoder.py).
constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Behaviour { isolated, removed, merged_with_previous, merged_with_next, contiguous };

Behaviour parse_behaviour(const JsonObject& step) {
  const std::string name = step.string("behavior");
  if (name == "Isolated") return Behaviour::isolated;
  if (name == "Removed") return Behaviour::removed;
  if (name == "MergedWithPrevious") return Behaviour::merged_with_previous;
  if (name == "MergedWithNext") return Behaviour::merged_with_next;
  if (name == "Contiguous") return Behaviour::contiguous;
  throw UnsupportedError(fmt::format("{}: unknown behaviour \"{}\"", step.where("behavior"), name));
}

struct Segment {
  size_t begin, end;  // bytes
  bool delimiter;
};
using Segments = std::vector<Segment>;

/// Cuts the whole text into matches and what lies between them; the delimiters are the matches, or with `invert` the
/// rest.
Segments segments(std::string_view text, const Regex& pattern, bool invert) {
  Segments result;
  size_t position = 0;
  for (const auto& [begin, end] : pattern.matches(text)) {
    if (begin > position) result.push_back({position, begin, invert});
    result.push_back({begin, end, !invert});
    position = end;
  }
  if (position < text.size()) result.push_back({position, text.size(), invert});
  return result;
}

/// Joins each segment for which `joins(segment, delimiter before it)` holds with the one before it.
template <typename Joins>
Segments join_segments(const Segments& parts, const Joins& joins) {
  Segments result;
  bool after_delimiter = false;
  for (const Segment& part : parts) {
    if (!result.empty() && joins(part.delimiter, after_delimiter)) {
      result.back().begin = std::min(result.back().begin, part.begin);
      result.back().end = std::max(result.back().end, part.end);
    } else {
      result.push_back(part);
    }
    after_delimiter = part.delimiter;
  }
  return result;
}

/// What becomes of the delimiters (tokenizers, SplitDelimiterBehavior): of several in a row only the one that touches
/// other text is merged with it.
Segments apply_behaviour(Segments parts, Behaviour behaviour) {
  const auto single_delimiter = [](bool delimiter, bool after_delimiter) { return delimiter && !after_delimiter; };
  switch (behaviour) {
    case Behaviour::isolated:
      return parts;
    case Behaviour::removed:
      std::erase_if(parts, [](const Segment& part) { return part.delimiter; });
      return parts;
    case Behaviour::contiguous:
      return join_segments(parts, [](bool delimiter, bool after_delimiter) { return delimiter == after_delimiter; });
    case Behaviour::merged_with_previous:
      return join_segments(parts, single_delimiter);
    case Behaviour::merged_with_next:
      std::reverse(parts.begin(), parts.end());
      parts = join_segments(parts, single_delimiter);
      std::reverse(parts.begin(), parts.end());
      return parts;
  }
  return parts;
}

void split_into(const Piece& piece, const Regex& pattern, bool invert, Behaviour behaviour, std::vector<Piece>& out) {
  for (const Segment& part : apply_behaviour(segments(piece.text, pattern, invert), behaviour)) {
    if (part.end == part.begin) continue;  // empty matches only mark places to cut
    out.push_back({piece.text.substr(part.begin, part.end - part.begin), piece.at_start && part.begin == 0});
  }
}

PreTokenizer split_by(const Regex& pattern, bool invert, Behaviour behaviour) {
  return [=](std::vector<Piece> pieces) {
    std::vector<Piece> out;
    for (const Piece& piece : pieces) split_into(piece, pattern, invert, behaviour, out);
    return out;
  };
}

PreTokenizer split_step(const JsonObject& step) {
  const JsonObject pattern = step.object("pattern");
  const Regex regex = pattern.has("Regex") ? Regex(pattern.string("Regex")) : Regex::literal(pattern.string("String"));
  return split_by(regex, step.boolean_or("invert", false), parse_behaviour(step));
}

std::string to_byte_level(std::string_view text) {
  std::string mapped;
  mapped.reserve(text.size() * 2);
  for (const char byte : text) mapped += byte_to_text()[static_cast<unsigned char>(byte)];
  return mapped;
}

PreTokenizer byte_level_step(const JsonObject& step) {
  const bool prefix_space = step.boolean_or("add_prefix_space", true);
  const bool use_regex = step.boolean_or("use_regex", true);
  const PreTokenizer words = split_by(Regex(kGpt2Pattern), false, Behaviour::isolated);
  return [=](std::vector<Piece> pieces) {
    for (Piece& piece : pieces) {
      if (prefix_space && !piece.text.starts_with(' ')) piece.text.insert(piece.text.begin(), ' ');
    }
    if (use_regex) pieces = words(std::move(pieces));
    for (Piece& piece : pieces) piece.text = to_byte_level(piece.text);
    return pieces;
  };
}

/// Rust's char::is_numeric: general categories Nd, Nl and No, with the numbers of Unicode 17.
PreTokenizer digits_step(const JsonObject& step) {
  const bool individual = step.boolean_or("individual_digits", false);
  return split_by(Regex(R"([\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}])"), false,
                  individual ? Behaviour::isolated : Behaviour::contiguous);
}

enum class PrependScheme { always, first, never };

PrependScheme parse_prepend_scheme(const JsonObject& step) {
  const std::string name =
      step.string_or("prepend_scheme", step.boolean_or("add_prefix_space", true) ? "always" : "never");
  if (name == "always") return PrependScheme::always;
  if (name == "first") return PrependScheme::first;
  if (name == "never") return PrependScheme::never;
  throw UnsupportedError(fmt::format("{}: unknown scheme \"{}\"", step.where("prepend_scheme"), name));
}

PreTokenizer metaspace_step(const JsonObject& step) {
  const std::string mark = step.string_or("replacement", "▁");
  const PrependScheme scheme = parse_prepend_scheme(step);
  const bool split = step.boolean_or("split", true);
  const PreTokenizer words = split_by(Regex::literal(mark), false, Behaviour::merged_with_next);
  return [=](std::vector<Piece> pieces) {
    for (Piece& piece : pieces) {
      std::string marked;
      for (const char c : piece.text) c == ' ' ? marked += mark : marked += c;
      const bool prepend = scheme == PrependScheme::always || (scheme == PrependScheme::first && piece.at_start);
      if (prepend && !marked.starts_with(mark)) marked.insert(0, mark);
      piece.text = std::move(marked);
    }
    return split ? words(std::move(pieces)) : pieces;
  };
}

}  // namespace

PreTokenizer make_pre_tokenizer(const std::optional<JsonObject>& step) {
  if (!step) return [](std::vector<Piece> pieces) { return pieces; };
  const std::string type = step->string("type");
  if (type == "ByteLevel") return byte_level_step(*step);
  if (type == "Split") return split_step(*step);
  if (type == "Digits") return digits_step(*step);
  if (type == "Metaspace") return metaspace_step(*step);
  if (type == "Sequence") {
    std::vector<PreTokenizer> steps;
    for (const JsonObject& inner : step->objects("pretokenizers")) steps.push_back(make_pre_tokenizer(inner));
    return [steps](std::vector<Piece> pieces) {
      for (const PreTokenizer& inner : steps) pieces = inner(std::move(pieces));
      return pieces;
    };
  }
  throw UnsupportedError(fmt::format("{}: unknown pre-tokenizer \"{}\"", step->where("type"), type));
}

}  // namespace cinch
