#include "eval/logits_file.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "core/errors.h"
#include "core/files.h"
#include "core/progress.h"

namespace cinch {
namespace {

constexpr int64_t kRowBlockElements = int64_t{1} << 24;

/// The header of a version 1.0 .npy file, padded so that data start at a multiple of 64.
std::string npy_header(int64_t rows, int64_t columns) {
  std::string text = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, columns);
  constexpr size_t kPrefix = 10;
  text.append(63 - (kPrefix + text.size()) % 64, ' ');
  text += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(text.size() & 0xff);
  header += static_cast<char>(text.size() >> 8);
  return header + text;
}

void write_sequence(const std::shared_ptr<ModelSource>& model, const std::vector<int64_t>& sequence,
                    const LayerStream::Options& options, AtomicFile& file) {
  LayerStream stream(model, at::tensor(sequence, at::kLong).unsqueeze(0), options);
  while (!stream.done()) {
    check_interrupt();
    stream.advance(stream.load_layer());
  }
  const at::Tensor hidden = stream.hidden().squeeze(0);
  const int64_t step = std::max<int64_t>(kRowBlockElements / model->config().vocab_size, 1);
  for (int64_t begin = 0; begin < hidden.size(0); begin += step) {
    const at::Tensor rows = hidden.narrow(0, begin, std::min(step, hidden.size(0) - begin));
    const at::Tensor logits = stream.trunk().logits(rows).to(at::kCPU, at::kFloat).contiguous();
    file.write(std::as_bytes(std::span(logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel()))));
  }
}

}  // namespace

std::vector<std::vector<int64_t>> read_sequences(const std::filesystem::path& path) {
  std::istringstream text(read_text(path));
  std::vector<std::vector<int64_t>> sequences;
  std::string line;
  for (int64_t number = 1; std::getline(text, line); ++number) {
    std::istringstream words(line);
    std::vector<int64_t> ids;
    for (std::string word; words >> word;) {
      int64_t id = 0;
      const auto [end, fault] = std::from_chars(word.data(), word.data() + word.size(), id);
      if (fault != std::errc() || end != word.data() + word.size()) {
        throw ConfigError(
            fmt::format("{}: line {}: expected a token id, found \"{}\"", path.string(), number, word.substr(0, 40)),
            "one sequence per line, ids separated by blanks");
      }
      ids.push_back(id);
    }
    if (!ids.empty()) sequences.push_back(std::move(ids));
  }
  if (sequences.empty()) throw ConfigError(fmt::format("{}: no token ids in this file", path.string()));
  return sequences;
}

void write_logits(std::shared_ptr<ModelSource> model, const std::vector<std::vector<int64_t>>& sequences,
                  const std::filesystem::path& path, at::ScalarType dtype, at::Device device) {
  const c10::InferenceMode inference;
  const int64_t vocabulary = model->config().vocab_size;
  int64_t rows = 0;
  for (const auto& sequence : sequences) {
    rows += static_cast<int64_t>(sequence.size());
    for (const int64_t id : sequence) {
      if (id >= 0 && id < vocabulary) continue;
      throw UsageError(fmt::format("--tokens: id {} is outside the model's vocabulary of {}", id, vocabulary),
                       "the ids belong to another tokenizer");
    }
  }
  AtomicFile file(path);
  file.write(npy_header(rows, vocabulary));
  Progress progress({.phase = "logits", .unit = "sequences", .total = sequences.size()});
  const LayerStream::Options options{.dtype = dtype, .device = device};
  for (const auto& sequence : sequences) {
    write_sequence(model, sequence, options, file);
    progress.advance();
  }
  progress.finish();
  file.commit();
}

}  // namespace cinch
