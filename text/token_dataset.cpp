#include "text/token_dataset.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "core/errors.h"
#include "core/files.h"
#include "core/hdf5.h"
#include "core/hdf5_seal.h"

namespace cinch {
namespace {

constexpr const char* kDataset = "tokens";

template <typename T>
std::vector<int64_t> widen(std::span<const std::byte> bytes) {
  std::vector<int64_t> ids(bytes.size() / sizeof(T));
  for (size_t i = 0; i < ids.size(); ++i) {
    T value{};
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    ids[i] = static_cast<int64_t>(value);
  }
  return ids;
}

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& rule) {
  throw ConfigError(fmt::format("{}: {}", path.string(), rule));
}

TokenDataset read_hdf5(const std::filesystem::path& path) {
  const MappedFile file(path);
  check_hdf5_seal(file.bytes(), path);
  const Hdf5Reader reader(path);
  for (const Hdf5Dataset& dataset : reader.datasets()) {
    if (dataset.name != kDataset) continue;
    if (dataset.offset > file.bytes().size() || dataset.bytes > file.bytes().size() - dataset.offset)
      refuse(path, "the tokens lie outside of the file");
    const auto bytes = file.bytes().subspan(dataset.offset, dataset.bytes);
    TokenDataset result;
    result.ids = dataset.dtype == Dtype::kU16 ? widen<uint16_t>(bytes) : widen<uint32_t>(bytes);
    result.vocab_size = std::stoll(reader.text_attribute(kDataset, "vocab_size").value_or("0"));
    result.tokenizer_digest = reader.text_attribute(kDataset, "tokenizer_digest").value_or("");
    return result;
  }
  refuse(path, "not a token dataset: there is no dataset \"tokens\"");
}

/// NumPy's format 1.0/2.0: magic, version, header length, a Python dict literal (numpy.lib.format).
TokenDataset read_npy(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0) refuse(path, "not a .npy file");
  const bool wide = static_cast<int>(bytes[6]) > 1;
  uint32_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data() + 8, wide ? 4 : 2);
  const size_t begin = (wide ? 12 : 10) + size_t{header_bytes};
  if (begin > bytes.size()) refuse(path, "the .npy header is longer than the file");
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + (wide ? 12 : 10), header_bytes);
  const auto data = bytes.subspan(begin);
  if (header.find("'fortran_order': True") != std::string_view::npos) refuse(path, "Fortran order is not read");
  if (header.find("'<u2'") != std::string_view::npos) return {widen<uint16_t>(data), 0, ""};
  if (header.find("'<i4'") != std::string_view::npos) return {widen<int32_t>(data), 0, ""};
  if (header.find("'<u4'") != std::string_view::npos) return {widen<uint32_t>(data), 0, ""};
  if (header.find("'<i8'") != std::string_view::npos) return {widen<int64_t>(data), 0, ""};
  refuse(path, "its dtype is none of uint16, int32, uint32, int64");
}

/// Megatron's indexed dataset: magic, version 1, dtype code at byte 17 (megatron/core/datasets/indexed_dataset.py).
TokenDataset read_megatron(const std::filesystem::path& path, const std::filesystem::path& index) {
  const MappedFile table(index), data(path);
  const auto header = table.bytes();
  if (header.size() < 18 || std::memcmp(header.data(), "MMIDIDX\0\0", 9) != 0) refuse(index, "not a Megatron index");
  switch (static_cast<int>(header[17])) {
    case 8:
      return {widen<uint16_t>(data.bytes()), 0, ""};
    case 4:
      return {widen<int32_t>(data.bytes()), 0, ""};
    case 5:
      return {widen<int64_t>(data.bytes()), 0, ""};
    default:
      refuse(index,
             fmt::format("its type code {} is none of uint16 (8), int32 (4), int64 (5)", static_cast<int>(header[17])));
  }
}

TokenDataset read_bin(const std::filesystem::path& path) {
  std::filesystem::path index = path;
  index.replace_extension(".idx");
  if (std::filesystem::exists(index)) return read_megatron(path, index);
  const MappedFile file(path);
  const auto bytes = file.bytes();
  constexpr size_t kHeaderBytes = 1024;  // llm.c: 256 int32, the first the magic, then version and token count
  int32_t header[3] = {};
  if (bytes.size() >= kHeaderBytes) std::memcpy(header, bytes.data(), sizeof(header));
  if (header[0] != 20240520) return {widen<uint16_t>(bytes), 0, ""};
  const auto data = bytes.subspan(kHeaderBytes);
  if (header[2] < 0 || static_cast<uint64_t>(header[2]) * 2 > data.size())
    refuse(path, fmt::format("its header claims {} tokens, the file holds {}", header[2], data.size() / 2));
  return {widen<uint16_t>(data.first(static_cast<size_t>(header[2]) * 2)), 0, ""};
}

TokenDataset read_text_ids(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  TokenDataset result;
  const auto is_gap = [](char c) { return std::isspace(static_cast<unsigned char>(c)) || c == ','; };
  for (const char *at = text.data(), *end = at + text.size(); at < end;) {
    if (is_gap(*at)) {
      ++at;
      continue;
    }
    int64_t id = -1;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0 || (next < end && !is_gap(*next))) {
      refuse(path, fmt::format("\"{}\" at byte {} is not a token id",
                               std::string(at, std::min<size_t>(12, static_cast<size_t>(end - at))), at - text.data()));
    }
    result.ids.push_back(id);
    at = next;
  }
  return result;
}

}  // namespace

void write_token_dataset(const std::filesystem::path& path, const TokenDataset& dataset) {
  const int64_t top = dataset.ids.empty() ? 0 : *std::max_element(dataset.ids.begin(), dataset.ids.end());
  const bool narrow = std::max(top + 1, dataset.vocab_size) <= 65536;
  std::vector<std::byte> bytes(dataset.ids.size() * (narrow ? 2 : 4));
  for (size_t i = 0; i < dataset.ids.size(); ++i) {
    const auto wide = static_cast<uint32_t>(dataset.ids[i]);
    std::memcpy(bytes.data() + i * (narrow ? 2 : 4), &wide, narrow ? 2 : 4);  // little-endian: the low bytes come first
  }
  std::filesystem::path temporary = path;
  temporary += fmt::format(".tmp-{}", ::getpid());
  try {
    Hdf5Writer writer(temporary);
    writer.create(kDataset, narrow ? Dtype::kU16 : Dtype::kU32, {static_cast<int64_t>(dataset.ids.size())});
    writer.write_rows(kDataset, 0, bytes);
    writer.set_attribute(kDataset, "vocab_size", std::to_string(dataset.vocab_size));
    writer.set_attribute(kDataset, "tokenizer_digest", dataset.tokenizer_digest);
    writer.close();
    const Hdf5Dataset stored = Hdf5Reader(temporary).datasets().front();
    seal_hdf5(temporary, {{stored.offset, stored.bytes}});
    std::filesystem::rename(temporary, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
}

TokenDataset read_token_dataset(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  if (extension == ".h5" || extension == ".hdf5") return read_hdf5(path);
  if (extension == ".npy") return read_npy(path);
  if (extension == ".bin") return read_bin(path);
  return read_text_ids(path);
}

}  // namespace cinch
