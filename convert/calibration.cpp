#include "convert/calibration.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "core/digest.h"
#include "core/errors.h"

namespace cinch {
namespace {

constexpr int64_t kPlainWindows = 4;  // for methods that fit nothing: enough to measure on
constexpr int64_t kSyntheticWindows = 2;
constexpr int64_t kSyntheticLength = 64;

std::vector<int64_t> all_of(const at::Tensor& windows) {
  std::vector<int64_t> all(static_cast<size_t>(windows.size(0)));
  std::iota(all.begin(), all.end(), int64_t{0});
  return all;
}

/// Lets pre-tokenised files calibrate a model that has no tokenizer.
class IdsOnly : public Tokenizer {
 public:
  explicit IdsOnly(int64_t vocab_size) : vocab_size_(vocab_size) {}
  std::vector<int64_t> encode(std::string_view, bool) const override { refuse(); }
  std::string decode(std::span<const int64_t>, bool) const override { refuse(); }
  int64_t vocab_size() const override { return vocab_size_; }
  std::optional<int64_t> bos_id() const override { return std::nullopt; }
  std::optional<int64_t> eos_id() const override { return std::nullopt; }
  std::string piece(int64_t) const override { refuse(); }
  std::optional<int64_t> id_of(std::string_view) const override { return std::nullopt; }

 private:
  [[noreturn]] static void refuse() {
    throw ConfigError(
        "the model has no tokenizer, so calibration text cannot be read",
        "put tokenizer.json or tokenizer.model into its folder, or give token ids: --calibration ids.npy");
  }
  int64_t vocab_size_;
};

at::Tensor to_tensor(const TokenWindows& windows) {
  const auto count = static_cast<int64_t>(windows.windows.size());
  at::Tensor ids = at::empty({count, windows.length}, at::kLong);
  int64_t* out = ids.mutable_data_ptr<int64_t>();
  for (const std::vector<int64_t>& window : windows.windows) out = std::copy(window.begin(), window.end(), out);
  return ids;
}

at::Tensor synthetic_windows(const ModelConfig& config, uint64_t seed) {
  const int64_t length = std::min(kSyntheticLength, config.max_position_embeddings);
  std::mt19937_64 random(seed + 1);
  at::Tensor ids = at::empty({kSyntheticWindows, length}, at::kLong);
  int64_t* out = ids.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    out[i] = static_cast<int64_t>(random() % static_cast<uint64_t>(config.vocab_size));
  }
  return ids;
}

void check_vocabulary(const at::Tensor& ids, int64_t vocab_size) {
  const auto highest = ids.max().item<int64_t>();
  if (highest >= vocab_size) {
    throw ConfigError(
        fmt::format("calibration: token id {} is outside of the model's vocabulary of {}", highest, vocab_size),
        "the tokenizer or the token file belongs to another model");
  }
}

std::vector<std::filesystem::path> files_of(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.path().extension() == ".txt") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

std::vector<CorpusSpec> bundled_sources(const std::filesystem::path& folder) {
  std::vector<CorpusSpec> sources;
  std::error_code fault;
  for (const auto& entry : std::filesystem::directory_iterator(folder, fault)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".txt" || extension == ".jsonl") sources.push_back({entry.path(), 1.0});
  }
  std::sort(sources.begin(), sources.end(), [](const CorpusSpec& a, const CorpusSpec& b) { return a.path < b.path; });
  return sources;
}

Json CalibrationSet::provenance() const {
  Json files = Json::array();
  for (const CorpusSpec& spec : sources) {
    for (const std::filesystem::path& file : files_of(spec.path)) {
      files.push_back(
          {{"file", file.filename().string()}, {"weight", spec.weight}, {"sha256", sha256_hex_of_file(file)}});
    }
  }
  const auto* ids = reinterpret_cast<const std::byte*>(windows.const_data_ptr<int64_t>());
  return {{"bundled", bundled},
          {"synthetic", synthetic},
          {"files", files},
          {"windows", windows.size(0)},
          {"window", windows.size(1)},
          {"validation", roles.validation},
          {"held_out", roles.held_out},
          {"tokens_xxh3", xxh3_hex({ids, static_cast<size_t>(windows.numel()) * sizeof(int64_t)})}};
}

CalibrationSet load_calibration(const ModelSource& source, const ConversionRecipe& recipe,
                                const std::filesystem::path& bundled, bool needs_text) {
  CalibrationSet set;
  set.sources = recipe.calibration;
  std::unique_ptr<Tokenizer> tokenizer = source.tokenizer();
  if (set.sources.empty() && tokenizer && !bundled.empty()) {
    set.sources = bundled_sources(bundled);
    set.bundled = !set.sources.empty();
  }
  if (set.sources.empty()) {
    if (needs_text) {
      throw UsageError(tokenizer
                           ? "no calibration text: the bundled mixture was not found"
                           : "no calibration text: the model has no tokenizer, so the bundled mixture cannot be used",
                       "give text (--calibration FILE), token ids (--calibration ids.npy), or take a method that needs "
                       "none: --method mean");
    }
    set.synthetic = true;
    set.windows = synthetic_windows(source.config(), recipe.seed);
    return set;
  }
  if (!tokenizer) tokenizer = std::make_unique<IdsOnly>(source.config().vocab_size);
  int64_t count = recipe.calibration_tokens / recipe.calibration_window;
  if (!needs_text) count = std::min(count, kPlainWindows);
  const TokenWindows windows = with_context("reading the calibration text", [&] {
    return calibration_windows(*tokenizer, set.sources, count, recipe.calibration_window);
  });
  set.windows = to_tensor(windows);
  check_vocabulary(set.windows, source.config().vocab_size);
  set.roles = needs_text ? choose_roles(windows.sources)
                         : WindowRoles{.fit = {}, .validation = {}, .held_out = all_of(set.windows)};
  return set;
}

}  // namespace cinch
