#include <fmt/format.h>

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
  std::string_view text;
  bool match;
};

std::vector<Segment> segments(std::string_view text, const Regex& pattern, bool invert) {
  std::vector<Segment> result;
  size_t position = 0;
  for (const auto& [begin, end] : pattern.matches(text)) {
    if (begin > position) result.push_back({text.substr(position, begin - position), invert});
    result.push_back({text.substr(begin, end - begin), !invert});
    position = end;
  }
  if (position < text.size()) result.push_back({text.substr(position), invert});
  return result;
}

/// Delimiters are the matching segments; what becomes of them is the behaviour (tokenizers, SplitDelimiterBehavior).
void split_into(std::string_view text, const Regex& pattern, bool invert, Behaviour behaviour,
                std::vector<std::string>& out) {
  bool previous_match = false, join_next = false;
  bool first = true;
  for (const Segment& segment : segments(text, pattern, invert)) {
    const bool glue_back =
        !first && ((behaviour == Behaviour::merged_with_previous && segment.match && !previous_match) ||
                   (behaviour == Behaviour::contiguous && segment.match == previous_match) || join_next);
    if (behaviour == Behaviour::removed && segment.match) {
      previous_match = true;
      continue;
    }
    if (glue_back) {
      out.back() += segment.text;
    } else {
      out.emplace_back(segment.text);
    }
    join_next = behaviour == Behaviour::merged_with_next && segment.match;
    previous_match = segment.match;
    first = false;
  }
}

PreTokenizer split_step(const JsonObject& step) {
  const JsonObject pattern = step.object("pattern");
  const Regex regex = pattern.has("Regex") ? Regex(pattern.string("Regex")) : Regex::literal(pattern.string("String"));
  const Behaviour behaviour = parse_behaviour(step);
  const bool invert = step.boolean_or("invert", false);
  return [=](std::vector<std::string> pieces, bool) {
    std::vector<std::string> out;
    for (const std::string& piece : pieces) split_into(piece, regex, invert, behaviour, out);
    return out;
  };
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
  const Regex words(kGpt2Pattern);
  return [=](std::vector<std::string> pieces, bool) {
    std::vector<std::string> out;
    for (std::string& piece : pieces) {
      if (prefix_space && !piece.empty() && piece.front() != ' ') piece.insert(piece.begin(), ' ');
      if (!use_regex) {
        out.push_back(to_byte_level(piece));
        continue;
      }
      for (const Segment& word : segments(piece, words, false)) out.push_back(to_byte_level(word.text));
    }
    return out;
  };
}

PreTokenizer digits_step(const JsonObject& step) {
  const bool individual = step.boolean_or("individual_digits", false);
  // Rust's char::is_numeric: general categories Nd, Nl and No.
  const Regex digits(individual ? R"(\p{N})" : R"(\p{N}+)");
  return [=](std::vector<std::string> pieces, bool) {
    std::vector<std::string> out;
    for (const std::string& piece : pieces) split_into(piece, digits, false, Behaviour::isolated, out);
    return out;
  };
}

PreTokenizer metaspace_step(const JsonObject& step) {
  const std::string mark = step.string_or("replacement", "▁");
  std::string scheme = step.string_or("prepend_scheme", step.boolean_or("add_prefix_space", true) ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    throw UnsupportedError(fmt::format("{}: unknown scheme \"{}\"", step.where("prepend_scheme"), scheme));
  }
  const bool split = step.boolean_or("split", true);
  const Regex marks = Regex::literal(mark);
  return [=](std::vector<std::string> pieces, bool first) {
    std::vector<std::string> out;
    for (const std::string& piece : pieces) {
      std::string marked;
      for (const char c : piece) {
        if (c == ' ') {
          marked += mark;
        } else {
          marked += c;
        }
      }
      const bool prepend = scheme == "always" || (scheme == "first" && first);
      if (prepend && !marked.starts_with(mark)) marked.insert(0, mark);
      if (split) {
        split_into(marked, marks, false, Behaviour::merged_with_next, out);
      } else {
        out.push_back(std::move(marked));
      }
    }
    return out;
  };
}

}  // namespace

PreTokenizer make_pre_tokenizer(const std::optional<JsonObject>& step) {
  if (!step) return [](std::vector<std::string> pieces, bool) { return pieces; };
  const std::string type = step->string("type");
  if (type == "ByteLevel") return byte_level_step(*step);
  if (type == "Split") return split_step(*step);
  if (type == "Digits") return digits_step(*step);
  if (type == "Metaspace") return metaspace_step(*step);
  if (type == "Sequence") {
    std::vector<PreTokenizer> steps;
    for (const JsonObject& inner : step->objects("pretokenizers")) steps.push_back(make_pre_tokenizer(inner));
    return [steps](std::vector<std::string> pieces, bool first) {
      for (const PreTokenizer& inner : steps) pieces = inner(std::move(pieces), first);
      return pieces;
    };
  }
  throw UnsupportedError(fmt::format("{}: unknown pre-tokenizer \"{}\"", step->where("type"), type));
}

}  // namespace cinch
