#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "core/errors.h"
#include "core/files.h"
#include "text/bpe.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json.h"
#include "text/tokenizer_steps.h"
#include "text/unicode.h"

namespace cinch {
namespace {

constexpr size_t kCachedWordBytes = 64;
constexpr size_t kCachedWords = 1 << 16;
constexpr int64_t kMaxId = (1 << 22) - 1;  // the tables by id stay small whatever a file says

/// The two large members of "model", taken out of the tree so that it can be copied freely.
struct ModelTables {
  Json vocabulary, merges;
};

ModelTables take_tables(Json& root) {
  ModelTables tables;
  const auto model = root.is_object() ? root.find("model") : root.end();
  if (!root.is_object() || model == root.end() || !model->is_object()) return tables;
  for (const auto& [key, table] : {std::pair{"vocab", &tables.vocabulary}, std::pair{"merges", &tables.merges}}) {
    const auto found = model->find(key);
    if (found == model->end()) continue;
    *table = std::move(*found);
    *found = nullptr;
  }
  return tables;
}

VocabularyMap read_vocabulary(const Json& table, const JsonObject& model) {
  if (!table.is_object()) throw ConfigError(fmt::format("{}: expected an object", model.where("vocab")));
  VocabularyMap vocabulary;
  vocabulary.reserve(table.size());
  for (const auto& [piece, id] : table.get_ref<const Json::object_t&>()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxId) {
      throw ConfigError(fmt::format("{}: \"{}\": {} is not a token id", model.where("vocab"), piece, id.dump()));
    }
    vocabulary.emplace(piece, id.get<int64_t>());
  }
  return vocabulary;
}

/// Pairs, or in older files strings with one space between the two pieces.
std::vector<std::pair<std::string, std::string>> read_merges(const Json& table, const JsonObject& model) {
  if (!table.is_array()) throw ConfigError(fmt::format("{}: expected a list", model.where("merges")));
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(table.size());
  for (const Json& merge : table) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      merges.emplace_back(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>());
      continue;
    }
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    if (text.starts_with("#version")) continue;
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      throw ConfigError(fmt::format("{}[{}]: a merge is two pieces", model.where("merges"), merges.size()));
    }
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

BpeModel::Options read_model(const JsonObject& model, const ModelTables& tables) {
  const std::string type = model.string_or("type", "BPE");
  if (type != "BPE")
    throw UnsupportedError(fmt::format("{}: unknown model \"{}\"", model.where("type"), type),
                           "cinch reads BPE tokenizers");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.string_or(key, "").empty()) throw UnsupportedError(fmt::format("{}: not supported", model.where(key)));
  }
  if (model.number_or("dropout", 0) != 0)
    throw UnsupportedError(fmt::format("{}: BPE dropout is not supported", model.where("dropout")));
  BpeModel::Options options;
  options.vocabulary = read_vocabulary(tables.vocabulary, model);
  options.merges = read_merges(tables.merges, model);
  if (model.has("unk_token")) options.unknown = model.string("unk_token");
  options.fuse_unknown = model.boolean_or("fuse_unk", false);
  options.byte_fallback = model.boolean_or("byte_fallback", false);
  options.ignore_merges = model.boolean_or("ignore_merges", false);
  return options;
}

/// Added tokens with the ids that `tokenizers` gives them: that of the vocabulary where it has the spelling, else the
/// next free one after it. The file's own "id" is only checked.
std::vector<AddedToken> read_added_tokens(const JsonObject& root, const VocabularyMap& vocabulary) {
  std::vector<AddedToken> tokens;
  if (!root.has("added_tokens")) return tokens;
  std::unordered_map<std::string, size_t> known;
  int64_t next = static_cast<int64_t>(vocabulary.size());
  for (const JsonObject& entry : root.objects("added_tokens")) {
    AddedToken token;
    token.content = entry.string("content");
    token.special = entry.boolean_or("special", false);
    token.single_word = entry.boolean_or("single_word", false);
    token.strip_left = entry.boolean_or("lstrip", false);
    token.strip_right = entry.boolean_or("rstrip", false);
    token.normalized = entry.boolean_or("normalized", !token.special);
    if (token.content.empty()) continue;
    const auto [again, fresh] = known.try_emplace(token.content, tokens.size());
    const auto found = vocabulary.find(token.content);
    token.id = !fresh ? tokens[again->second].id : found != vocabulary.end() ? found->second : next++;
    if (const int64_t written = entry.integer("id"); written != token.id) {
      throw ConfigError(fmt::format("{}: \"{}\" has the id {} here, but {} by its place after the vocabulary",
                                    entry.where("id"), token.content, written, token.id));
    }
    if (fresh) {
      tokens.push_back(std::move(token));
    } else {
      tokens[again->second] = std::move(token);
    }
  }
  return tokens;
}

/// The tokens that are searched for in normalized text, or the others. The spelling of the former is normalized too
/// (Llama-2: "<s>" becomes "▁<s>").
AddedTokenFinder make_finder(std::vector<AddedToken> tokens, bool normalized, const Normalizer& normalizer,
                             const JsonObject& root) {
  std::erase_if(tokens, [&](const AddedToken& token) { return token.normalized != normalized; });
  for (AddedToken& token : tokens) {
    const std::string content = normalized ? normalizer(token.content) : token.content;
    if (content.empty())
      throw UnsupportedError(
          fmt::format("{}: nothing of \"{}\" is left by the normalizer", root.where("added_tokens"), token.content));
    token.content = content;
  }
  return AddedTokenFinder(std::move(tokens));
}

class JsonTokenizer : public Tokenizer {
 public:
  JsonTokenizer(const JsonObject& root, const ModelTables& tables, const TokenizerHints& hints)
      : normalizer_(make_normalizer(root.object_if("normalizer"))),
        pre_tokenizer_(make_pre_tokenizer(root.object_if("pre_tokenizer"))),
        model_(read_model(root.object("model"), tables), root.origin()),
        added_tokens_(read_added_tokens(root, model_.vocabulary())),
        raw_tokens_(make_finder(added_tokens_, false, normalizer_, root)),
        normalized_tokens_(make_finder(added_tokens_, true, normalizer_, root)),
        post_(make_post_processor(root.object_if("post_processor"))),
        decoder_(make_decoder(root.object_if("decoder"))) {
    if (const std::string version = root.string_or("version", "1.0"); version != "1.0")
      throw UnsupportedError(fmt::format("{}: unknown version \"{}\"", root.where("version"), version));
    list_pieces();
    check_special_ids(root);
    bos_ = hints.bos.empty() ? std::nullopt : id_of(hints.bos);
    eos_ = hints.eos.empty() ? std::nullopt : id_of(hints.eos);
    if (!bos_ && !post_.prefix.empty()) bos_ = post_.prefix.front();
  }

  std::vector<int64_t> encode(std::string_view text, bool add_special) const override {
    std::vector<int64_t> ids;
    if (add_special) ids = post_.prefix;
    const std::string valid = repair_utf8(text);
    bool first = true;
    for (const auto& part : raw_tokens_.split(valid)) {
      if (part.token != nullptr) {
        ids.push_back(part.token->id);
      } else {
        encode_plain(part.text, first, ids);
      }
      first = false;
    }
    if (add_special) ids.insert(ids.end(), post_.suffix.begin(), post_.suffix.end());
    return ids;
  }

  std::string decode(std::span<const int64_t> ids, bool skip_special) const override {
    std::vector<std::string> pieces;
    for (const int64_t id : ids) {
      if (id < 0 || id >= vocab_size() || !known_[static_cast<size_t>(id)]) continue;
      if (skip_special && special_[static_cast<size_t>(id)]) continue;
      pieces.push_back(pieces_[static_cast<size_t>(id)]);
    }
    return fmt::format("{}", fmt::join(decoder_(std::move(pieces)), ""));
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(pieces_.size()); }
  std::optional<int64_t> bos_id() const override { return bos_; }
  std::optional<int64_t> eos_id() const override { return eos_; }
  std::string piece(int64_t id) const override {
    return id >= 0 && id < vocab_size() ? pieces_[static_cast<size_t>(id)] : "";
  }
  std::optional<int64_t> id_of(std::string_view piece) const override {
    if (const auto added = added_.find(piece); added != added_.end()) return added->second;
    const auto found = model_.vocabulary().find(piece);
    if (found == model_.vocabulary().end()) return std::nullopt;
    return found->second;
  }

 private:
  void check_special_ids(const JsonObject& root) const {
    for (const auto& side : {post_.prefix, post_.suffix}) {
      for (const int64_t id : side) {
        if (id < 0 || id >= vocab_size())
          throw ConfigError(fmt::format("{}: the id {} is outside of the vocabulary of {}",
                                        root.where("post_processor"), id, vocab_size()));
      }
    }
  }

  void list_pieces() {
    int64_t top = -1;
    for (const auto& [piece, id] : model_.vocabulary()) top = std::max(top, id);
    for (const AddedToken& token : added_tokens_) top = std::max(top, token.id);
    pieces_.resize(static_cast<size_t>(top + 1));
    special_.resize(pieces_.size());
    known_.resize(pieces_.size());
    const auto set = [&](const std::string& piece, int64_t id, bool special) {
      pieces_[static_cast<size_t>(id)] = piece;
      special_[static_cast<size_t>(id)] = special;
      known_[static_cast<size_t>(id)] = true;
    };
    for (const auto& [piece, id] : model_.vocabulary()) set(piece, id, false);
    for (const AddedToken& token : added_tokens_) {
      set(token.content, token.id, token.special);
      added_.emplace(token.content, token.id);
    }
  }

  void encode_plain(std::string_view text, bool first, std::vector<int64_t>& ids) const {
    const std::string normal = normalizer_(std::string(text));
    for (const auto& part : normalized_tokens_.split(normal)) {
      if (part.token != nullptr) {
        ids.push_back(part.token->id);
      } else {
        for (const Piece& word : pre_tokenizer_({{std::string(part.text), first}})) encode_word(word.text, ids);
      }
      first = false;
    }
  }

  void encode_word(const std::string& word, std::vector<int64_t>& ids) const {
    if (word.size() > kCachedWordBytes) return model_.encode(word, ids);
    auto found = cache_.find(word);
    if (found == cache_.end()) {
      if (cache_.size() >= kCachedWords) cache_.clear();
      found = cache_.emplace(word, std::vector<int64_t>{}).first;
      model_.encode(word, found->second);
    }
    ids.insert(ids.end(), found->second.begin(), found->second.end());
  }

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  BpeModel model_;
  std::vector<AddedToken> added_tokens_;
  AddedTokenFinder raw_tokens_, normalized_tokens_;
  PostProcessor post_;
  Decoder decoder_;
  std::vector<std::string> pieces_;  // by id; ids that nothing has are not known_
  std::vector<bool> special_, known_;
  VocabularyMap added_;
  std::optional<int64_t> bos_, eos_;
  mutable std::unordered_map<std::string, std::vector<int64_t>> cache_;
};

/// tokenizer_config.json writes special tokens as text or as an object with "content".
std::string special_token(const JsonObject& config, const std::string& key) {
  if (!config.has(key)) return "";
  const Json& value = config.json().at(key);
  if (value.is_string()) return value.get<std::string>();
  return value.is_object() && value.contains("content") && value.at("content").is_string()
             ? value.at("content").get<std::string>()
             : "";
}

}  // namespace

std::unique_ptr<Tokenizer> make_json_tokenizer(Json json, const std::string& origin, const TokenizerHints& hints) {
  const ModelTables tables = take_tables(json);
  return std::make_unique<JsonTokenizer>(JsonObject(std::move(json), origin), tables, hints);
}

TokenizerHints read_tokenizer_hints(const std::filesystem::path& folder) {
  TokenizerHints hints;
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    if (!std::filesystem::exists(folder / name)) continue;
    const JsonObject config = JsonObject::from_file(folder / name);
    if (hints.bos.empty()) hints.bos = special_token(config, "bos_token");
    if (hints.eos.empty()) hints.eos = special_token(config, "eos_token");
  }
  return hints;
}

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& file) {
  return make_json_tokenizer(parse_json(read_text(file), file.string()), file.string(),
                             read_tokenizer_hints(file.parent_path()));
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / "tokenizer.json")) return load_tokenizer_json(folder / "tokenizer.json");
  if (std::filesystem::exists(folder / "tokenizer.model")) return load_sentencepiece(folder / "tokenizer.model");
  return nullptr;
}

}  // namespace cinch
