#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_map>

#include "core/errors.h"
#include "core/files.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json.h"
#include "text/unicode.h"

namespace cinch {
namespace {

enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Json split_on(const char* pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

struct PreForm {
  const char* name;    // tokenizer.ggml.pre
  Json pre_tokenizer;  // as tokenizer.json has it
  bool nfc;            // the published tokenizer.json normalises
  bool ignore_merges;
};

/// The pre-tokenizers that GGUF names; patterns as in the published tokenizer.json of each model.
const std::vector<PreForm>& pre_forms() {
  static const char* llama3 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  static const char* qwen2 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const auto sequence = [](Json first, Json second) {
    return Json{{"type", "Sequence"}, {"pretokenizers", Json::array({first, second})}};
  };
  static const std::vector<PreForm> forms = {
      {"gpt-2", byte_level(true), false, false},
      {"smollm", sequence({{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)), false, false},
      {"llama-bpe", sequence(split_on(llama3), byte_level(false)), false, true},
      {"qwen2", sequence(split_on(qwen2), byte_level(false)), true, false},
  };
  return forms;
}

const PreForm& pre_form(const std::string& name) {
  static const std::unordered_map<std::string, std::string> aliases = {
      {"llama3", "llama-bpe"}, {"llama-v3", "llama-bpe"}, {"phi-2", "gpt-2"}, {"default", "gpt-2"}, {"", "gpt-2"}};
  const auto alias = aliases.find(name);
  const std::string wanted = alias == aliases.end() ? name : alias->second;
  std::vector<std::string> known;
  for (const PreForm& form : pre_forms()) {
    if (form.name == wanted) return form;
    known.emplace_back(form.name);
  }
  throw UnsupportedError(fmt::format("GGUF pre-tokenizer \"{}\" is not known", name),
                         fmt::format("known: {}", fmt::join(known, ", ")));
}

/// Settings that do not change ids are left out of the comparison.
Json comparable(const Json& step) {
  Json copy = step;
  copy.erase("trim_offsets");
  for (auto& [key, value] : copy.items()) {
    if (value.is_array()) {
      for (Json& item : value) {
        if (item.is_object()) item = comparable(item);
      }
    }
  }
  return nlohmann::json(copy);  // sorted keys
}

/// All ways to put a piece together from two others, ranked by the piece's score as SentencePiece merges: best score
/// first, then the ids of the parts.
std::vector<std::array<std::string, 2>> merges_from_scores(const GgufVocabulary& vocabulary) {
  std::unordered_map<std::string_view, int64_t> ids;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const int32_t type = vocabulary.token_types[id];
    if (vocabulary.tokens[id].empty()) continue;
    if (type == kNormal || type == kUserDefined) ids.emplace(vocabulary.tokens[id], static_cast<int64_t>(id));
  }
  struct Merge {
    float score;
    int64_t left, right;
  };
  std::vector<Merge> merges;
  for (const auto& [piece, id] : ids) {
    for (size_t cut = utf8_length(piece.front()); cut < piece.size(); cut += utf8_length(piece[cut])) {
      const auto left = ids.find(piece.substr(0, cut)), right = ids.find(piece.substr(cut));
      if (left != ids.end() && right != ids.end())
        merges.push_back({vocabulary.scores[static_cast<size_t>(id)], left->second, right->second});
    }
  }
  std::sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::tie(b.score, a.left, a.right) < std::tie(a.score, b.left, b.right);
  });
  std::vector<std::array<std::string, 2>> result;
  for (const Merge& merge : merges) {
    result.push_back(
        {vocabulary.tokens[static_cast<size_t>(merge.left)], vocabulary.tokens[static_cast<size_t>(merge.right)]});
  }
  return result;
}

Json spm_json(const GgufVocabulary& vocabulary, Json root) {
  const bool prefix = vocabulary.add_space_prefix.value_or(true);
  Json steps = Json::array();
  if (prefix) steps.push_back({{"type", "Prepend"}, {"prepend", "▁"}});
  steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}});
  root["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  Json decoders = Json::array({{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                               {{"type", "ByteFallback"}},
                               {{"type", "Fuse"}}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  root["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  Json& model = root["model"];
  model["fuse_unk"] = true;
  model["byte_fallback"] = true;
  if (vocabulary.unk_id) model["unk_token"] = vocabulary.tokens.at(static_cast<size_t>(*vocabulary.unk_id));
  model["merges"] = merges_from_scores(vocabulary);
  return root;
}

Json bpe_json(const GgufVocabulary& vocabulary, Json root) {
  const PreForm& form = pre_form(vocabulary.pre);
  if (form.nfc) root["normalizer"] = {{"type", "NFC"}};
  root["pre_tokenizer"] = form.pre_tokenizer;
  root["decoder"] = byte_level(true);
  root["model"]["ignore_merges"] = form.ignore_merges;
  root["model"]["merges"] = vocabulary.merges;
  return root;
}

/// Nothing in a GGUF file is to be trusted.
void check_vocabulary(const GgufVocabulary& vocabulary) {
  for (const auto& id : {vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.pad_id}) {
    if (id && (*id < 0 || *id >= static_cast<int64_t>(vocabulary.tokens.size())))
      throw ConfigError(
          fmt::format("GGUF vocabulary: the special id {} is outside of its {} tokens", *id, vocabulary.tokens.size()));
  }
  if (vocabulary.token_types.size() != vocabulary.tokens.size() ||
      (vocabulary.model == "llama" && vocabulary.scores.size() != vocabulary.tokens.size())) {
    throw ConfigError("GGUF vocabulary: tokens, scores and token types differ in number");
  }
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (repair_utf8(vocabulary.tokens[id]) != vocabulary.tokens[id])
      throw ConfigError(fmt::format("GGUF vocabulary: token {} is not UTF-8", id));
    if (vocabulary.model == "llama" && !std::isfinite(vocabulary.scores[id]))
      throw ConfigError(fmt::format("GGUF vocabulary: the score of token {} is not a number", id));
  }
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    if (repair_utf8(vocabulary.merges[rank]) != vocabulary.merges[rank])
      throw ConfigError(fmt::format("GGUF vocabulary: merge {} is not UTF-8", rank));
  }
}

Json vocabulary_json(const GgufVocabulary& vocabulary) {
  check_vocabulary(vocabulary);
  Json root = {{"version", "1.0"},
               {"truncation", nullptr},
               {"padding", nullptr},
               {"added_tokens", Json::array()},
               {"normalizer", nullptr},
               {"pre_tokenizer", nullptr},
               {"post_processor", nullptr},
               {"decoder", nullptr},
               {"model",
                {{"type", "BPE"},
                 {"dropout", nullptr},
                 {"unk_token", nullptr},
                 {"continuing_subword_prefix", nullptr},
                 {"end_of_word_suffix", nullptr},
                 {"fuse_unk", false},
                 {"byte_fallback", false},
                 {"ignore_merges", false},
                 {"vocab", Json::object()},
                 {"merges", Json::array()}}}};
  nlohmann::json::object_t unique;  // duplicates keep their first id
  Json vocab = Json::object();
  auto& pairs = vocab.get_ref<Json::object_t&>();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::string& token = vocabulary.tokens[id];
    if (!unique.emplace(token, nullptr).second) continue;
    pairs.push_back({token, id});
    const int32_t type = vocabulary.token_types[id];
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    root["added_tokens"].push_back({{"id", id},
                                    {"content", token},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", type != kUserDefined}});
  }
  root["model"]["vocab"] = std::move(vocab);
  if (vocabulary.add_bos.value_or(vocabulary.model == "llama") && vocabulary.bos_id) {
    const std::string bos = vocabulary.tokens.at(static_cast<size_t>(*vocabulary.bos_id));
    root["post_processor"] = {
        {"type", "TemplateProcessing"},
        {"single", Json::array({{{"SpecialToken", {{"id", bos}, {"type_id", 0}}}},
                                {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}})},
        {"pair", Json::array({{{"SpecialToken", {{"id", bos}, {"type_id", 0}}}},
                              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                              {{"SpecialToken", {{"id", bos}, {"type_id", 1}}}},
                              {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}})},
        {"special_tokens",
         {{bos, {{"id", bos}, {"ids", Json::array({*vocabulary.bos_id})}, {"tokens", Json::array({bos})}}}}}};
  }
  if (vocabulary.model == "llama") return spm_json(vocabulary, std::move(root));
  if (vocabulary.model == "gpt2") return bpe_json(vocabulary, std::move(root));
  throw UnsupportedError(fmt::format("GGUF tokenizer model \"{}\" is not known", vocabulary.model),
                         "known: llama, gpt2");
}

TokenizerHints hints_of(const GgufVocabulary& vocabulary) {
  const auto spelled = [&](std::optional<int64_t> id) {
    return id && *id >= 0 && *id < static_cast<int64_t>(vocabulary.tokens.size())
               ? vocabulary.tokens[static_cast<size_t>(*id)]
               : std::string();
  };
  return {spelled(vocabulary.bos_id), spelled(vocabulary.eos_id)};
}

std::string pre_name_of(const Json& root) {
  const Json& found = root.at("pre_tokenizer");
  for (const PreForm& form : pre_forms()) {
    if (found.is_object() && comparable(found) == comparable(form.pre_tokenizer)) return form.name;
  }
  throw UnsupportedError("the pre_tokenizer of tokenizer.json has no GGUF name that cinch knows",
                         "export to hf, or convert the folder with llama.cpp's convert_hf_to_gguf.py");
}

GgufVocabulary from_json(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "tokenizer.json";
  const JsonObject root = JsonObject::from_file(file);
  const JsonObject model = root.object("model");
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer_json(file);
  GgufVocabulary vocabulary;
  const bool spm = model.boolean_or("byte_fallback", false);
  vocabulary.model = spm ? "llama" : "gpt2";
  for (int64_t id = 0; id < tokenizer->vocab_size(); ++id) {
    const std::string piece = tokenizer->piece(id);
    vocabulary.tokens.push_back(piece.empty() ? fmt::format("[PAD{}]", id) : piece);
    vocabulary.token_types.push_back(piece.empty()                                          ? kUnused
                                     : spm && piece.size() == 6 && piece.starts_with("<0x") ? kByte
                                                                                            : kNormal);
    if (spm) vocabulary.scores.push_back(-static_cast<float>(id));  // SentencePiece BPE vocabularies are in merge order
  }
  if (root.has("added_tokens")) {
    for (const JsonObject& token : root.objects("added_tokens")) {
      const auto id = tokenizer->id_of(token.string("content"));
      if (id)
        vocabulary.token_types[static_cast<size_t>(*id)] = token.boolean_or("special", false) ? kControl : kUserDefined;
    }
  }
  if (model.has("unk_token")) {
    vocabulary.unk_id = tokenizer->id_of(model.string("unk_token"));
    if (vocabulary.unk_id && spm) vocabulary.token_types[static_cast<size_t>(*vocabulary.unk_id)] = kUnknown;
  }
  if (!spm) {
    vocabulary.pre = pre_name_of(root.json());
    for (const Json& merge : model.json().at("merges")) {
      vocabulary.merges.push_back(merge.is_array() ? merge[0].get<std::string>() + " " + merge[1].get<std::string>()
                                                   : merge.get<std::string>());
    }
  }
  vocabulary.bos_id = tokenizer->bos_id();
  vocabulary.eos_id = tokenizer->eos_id();
  const std::vector<int64_t> empty = tokenizer->encode("", true);
  vocabulary.add_bos = !empty.empty() && vocabulary.bos_id && empty.front() == *vocabulary.bos_id;
  if (spm) {
    const std::vector<int64_t> ids = tokenizer->encode("a", false);
    vocabulary.add_space_prefix = !ids.empty() && tokenizer->piece(ids.front()).starts_with("▁");
  }
  return vocabulary;
}

}  // namespace

std::unique_ptr<Tokenizer> make_gguf_tokenizer(const GgufVocabulary& vocabulary) {
  return make_json_tokenizer(vocabulary_json(vocabulary), "GGUF vocabulary", hints_of(vocabulary));
}

std::string tokenizer_json_of(const GgufVocabulary& vocabulary) { return vocabulary_json(vocabulary).dump(1) + "\n"; }

GgufVocabulary gguf_vocabulary(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / "tokenizer.model")) return sentencepiece_vocabulary(folder / "tokenizer.model");
  if (std::filesystem::exists(folder / "tokenizer.json")) return from_json(folder);
  throw UnsupportedError(
      fmt::format("{}: there is no tokenizer.json or tokenizer.model to write into a GGUF file", folder.string()));
}

}  // namespace cinch
