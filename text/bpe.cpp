#include "text/bpe.h"

#include <fmt/format.h>

#include <queue>
#include <tuple>

#include "core/errors.h"
#include "text/unicode.h"

namespace cinch {

BpeModel::BpeModel(Options options, const std::string& origin) : options_(std::move(options)), origin_(origin) {
  const auto id_of = [&](std::string_view piece, size_t rank) {
    const auto found = options_.vocabulary.find(piece);
    if (found == options_.vocabulary.end()) {
      throw ConfigError(fmt::format("{}: model.merges[{}]: \"{}\" is not in the vocabulary", origin, rank, piece));
    }
    return found->second;
  };
  merges_.reserve(options_.merges.size() * 2);
  std::string whole;
  for (size_t rank = 0; rank < options_.merges.size(); ++rank) {
    const auto& [left, right] = options_.merges[rank];
    whole.assign(left).append(right);
    // Of equal merges the last counts, as in tokenizers.
    const int64_t left_id = id_of(left, rank), right_id = id_of(right, rank);
    merges_[pair_key(left_id, right_id)] = {static_cast<uint32_t>(rank), id_of(whole, rank)};
  }
  options_.merges = {};
  if (options_.unknown) {
    const auto found = options_.vocabulary.find(*options_.unknown);
    if (found != options_.vocabulary.end()) unknown_id_ = found->second;
  }
  if (options_.byte_fallback) {
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = options_.vocabulary.find(fmt::format("<0x{:02X}>", byte));
      byte_ids_.push_back(found == options_.vocabulary.end() ? -1 : found->second);
    }
  }
}

bool BpeModel::append_bytes(std::string_view character, std::vector<int64_t>& ids) const {
  if (byte_ids_.empty()) return false;
  for (const char byte : character) {
    if (byte_ids_[static_cast<unsigned char>(byte)] < 0) return false;
  }
  for (const char byte : character) ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
  return true;
}

int64_t BpeModel::unknown_id() const {
  if (unknown_id_) return *unknown_id_;
  throw ConfigError(fmt::format("{}: model.unk_token: \"{}\" is not in the vocabulary", origin_, *options_.unknown));
}

std::vector<int64_t> BpeModel::symbols(std::string_view word) const {
  std::vector<int64_t> result;
  bool unknown_waits = false;  // an unknown token comes after the bytes that follow it, as in tokenizers
  const auto flush = [&] {
    if (unknown_waits) result.push_back(unknown_id());
    unknown_waits = false;
  };
  for (size_t i = 0; i < word.size();) {
    const std::string_view character = word.substr(i, utf8_length(word[i]));
    i += character.size();
    const auto found = options_.vocabulary.find(character);
    if (found != options_.vocabulary.end()) {
      flush();
      result.push_back(found->second);
    } else if (!append_bytes(character, result) && options_.unknown) {
      if (!options_.fuse_unknown) flush();
      unknown_waits = true;
    }
  }
  flush();
  return result;
}

void BpeModel::merge(std::vector<int64_t>& symbols) const {
  struct Candidate {
    uint32_t rank;
    uint32_t left;
    int64_t merged;
    bool operator<(const Candidate& other) const { return std::tie(rank, left) > std::tie(other.rank, other.left); }
  };
  const auto count = static_cast<uint32_t>(symbols.size());
  constexpr uint32_t kNone = UINT32_MAX;
  std::vector<uint32_t> previous(count), next(count);
  for (uint32_t i = 0; i < count; ++i) {
    previous[i] = i == 0 ? kNone : i - 1;
    next[i] = i + 1 == count ? kNone : i + 1;
  }
  std::priority_queue<Candidate> queue;
  const auto consider = [&](uint32_t left) {
    if (left == kNone || next[left] == kNone) return;
    const auto found = merges_.find(pair_key(symbols[left], symbols[next[left]]));
    if (found != merges_.end()) queue.push({found->second.rank, left, found->second.id});
  };
  for (uint32_t i = 0; i + 1 < count; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    const uint32_t right = next[best.left];
    if (symbols[best.left] < 0 || right == kNone) continue;
    // An entry is stale when a neighbour was merged meanwhile, unless what stands there now merges to the same token.
    const auto now = merges_.find(pair_key(symbols[best.left], symbols[right]));
    if (now == merges_.end() || now->second.id != best.merged) continue;
    symbols[best.left] = best.merged;
    symbols[right] = -1;
    next[best.left] = next[right];
    if (next[right] != kNone) previous[next[right]] = best.left;
    consider(previous[best.left]);
    consider(best.left);
  }
  std::erase(symbols, -1);
}

void BpeModel::encode(std::string_view word, std::vector<int64_t>& ids) const {
  if (options_.ignore_merges) {
    const auto whole = options_.vocabulary.find(word);
    if (whole != options_.vocabulary.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  std::vector<int64_t> pieces = symbols(word);
  if (pieces.size() > 1) merge(pieces);
  ids.insert(ids.end(), pieces.begin(), pieces.end());
}

}  // namespace cinch
