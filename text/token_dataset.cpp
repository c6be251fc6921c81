#include "text/token_dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <span>

#include "core/errors.h"
#include "core/files.h"
#include "core/hdf5.h"
#include "core/hdf5_seal.h"

namespace cinch {
namespace {

constexpr const char* kDataset = "tokens";
constexpr const char* kDocuments = "documents";
constexpr int64_t kMaxId = INT32_MAX;  // of any tokenizer

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

/// A whole text as a number; nothing else.
std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

TokenDataset read_hdf5(const std::filesystem::path& path) {
  const MappedFile file(path);
  check_hdf5_seal(file.bytes(), path);
  const Hdf5Reader reader(path);
  const std::vector<Hdf5Dataset> datasets = reader.datasets();
  const auto bytes_of = [&](const Hdf5Dataset& dataset) {
    if (dataset.offset > file.bytes().size() || dataset.bytes > file.bytes().size() - dataset.offset)
      refuse(path, fmt::format("the {} lie outside of the file", dataset.name));
    return file.bytes().subspan(dataset.offset, dataset.bytes);
  };
  const auto named = [&](const char* name) {
    return std::find_if(datasets.begin(), datasets.end(), [&](const Hdf5Dataset& d) { return d.name == name; });
  };
  const auto tokens = named(kDataset), documents = named(kDocuments);
  if (tokens == datasets.end()) refuse(path, "not a token dataset: there is no dataset \"tokens\"");
  const bool narrow = tokens->dtype == Dtype::kU16;
  if (!narrow && tokens->dtype != Dtype::kU32) refuse(path, "the dtype of \"tokens\" is neither uint16 nor uint32");
  TokenDataset result;
  result.ids = narrow ? widen<uint16_t>(bytes_of(*tokens)) : widen<uint32_t>(bytes_of(*tokens));
  const std::string vocab_size = reader.text_attribute(kDataset, "vocab_size").value_or("0");
  const std::optional<uint64_t> size = parse_number(vocab_size);
  if (!size || *size > kMaxId + 1)
    refuse(path, fmt::format("the attribute vocab_size \"{}\" is not a size", vocab_size));
  result.vocab_size = static_cast<int64_t>(*size);
  result.tokenizer_digest = reader.text_attribute(kDataset, "tokenizer_digest").value_or("");
  if (documents != datasets.end()) {
    if (documents->dtype != Dtype::kI64) refuse(path, "the dtype of \"documents\" is not int64");
    result.documents = widen<int64_t>(bytes_of(*documents));
    check_documents(result.documents, result.ids.size(), path.string());
  }
  return result;
}

/// The value of `key` in the dict literal of a .npy header: up to the comma that ends it, a tuple in its brackets.
std::string_view npy_value(std::string_view header, std::string_view key) {
  const size_t at = header.find(fmt::format("'{}':", key));
  if (at == std::string_view::npos) return {};
  std::string_view rest = header.substr(at + key.size() + 3);
  rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
  if (rest.starts_with('(')) return rest.substr(0, rest.find(')') + 1);
  return rest.substr(0, rest.find_first_of(",}"));
}

/// Elements of a shape such as "(12,)" or "(3, 4)"; nothing when it is malformed or larger than 2^63.
std::optional<uint64_t> npy_elements(std::string_view shape) {
  if (!shape.starts_with('(') || !shape.ends_with(')')) return std::nullopt;
  shape = shape.substr(1, shape.size() - 2);
  uint64_t count = 1;
  while (!shape.empty()) {
    const size_t comma = std::min(shape.find(','), shape.size());
    const std::optional<uint64_t> size = parse_number(shape.substr(0, comma));
    if (!size || (*size != 0 && count > uint64_t{INT64_MAX} / *size)) return std::nullopt;
    count *= *size;
    shape.remove_prefix(std::min(comma + 1, shape.size()));
    shape.remove_prefix(std::min(shape.find_first_not_of(' '), shape.size()));
  }
  return count;
}

struct FlatType {
  size_t bytes;
  std::vector<int64_t> (*widen)(std::span<const std::byte>);
};

std::optional<FlatType> npy_type(std::string_view descr) {
  if (descr == "'|u1'") return FlatType{1, &widen<uint8_t>};
  if (descr == "'<u2'") return FlatType{2, &widen<uint16_t>};
  if (descr == "'<i4'") return FlatType{4, &widen<int32_t>};
  if (descr == "'<u4'") return FlatType{4, &widen<uint32_t>};
  if (descr == "'<i8'") return FlatType{8, &widen<int64_t>};
  return std::nullopt;
}

/// NumPy's formats 1.0 to 3.0: magic, version, header length, a Python dict literal (numpy.lib.format).
TokenDataset read_npy(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0) refuse(path, "not a .npy file");
  const int version = static_cast<int>(bytes[6]);
  if (version < 1 || version > 3) refuse(path, fmt::format("its .npy version {} is not known", version));
  const size_t prefix = version > 1 ? 12 : 10;
  uint32_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data() + 8, prefix - 8);
  if (header_bytes > bytes.size() - prefix) refuse(path, "the .npy header is longer than the file");
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + prefix, header_bytes);
  const auto data = bytes.subspan(prefix + header_bytes);
  const std::optional<FlatType> type = npy_type(npy_value(header, "descr"));
  if (!type) refuse(path, "its dtype is none of uint8, uint16, int32, uint32, int64 (little-endian)");
  if (npy_value(header, "fortran_order") != "False") refuse(path, "Fortran order is not read");
  const std::optional<uint64_t> count = npy_elements(npy_value(header, "shape"));
  if (!count) refuse(path, "the shape in the .npy header is not one");
  if (data.size() % type->bytes != 0 || data.size() / type->bytes != *count)
    refuse(path,
           fmt::format("its header claims {} elements of {} bytes, {} bytes follow", *count, type->bytes, data.size()));
  return {.ids = type->widen(data), .tokenizer_digest = ""};
}

/// Megatron's indexed dataset (megatron/core/datasets/indexed_dataset.py): magic, version 1, dtype code, numbers of
/// sequences and documents, then the length of each sequence, its place, and the documents' first sequences.
TokenDataset read_megatron(const std::filesystem::path& path, const std::filesystem::path& index) {
  constexpr size_t kHeaderBytes = 34;
  const MappedFile table(index), data(path);
  const auto header = table.bytes();
  if (header.size() < kHeaderBytes || std::memcmp(header.data(), "MMIDIDX\0\0", 9) != 0)
    refuse(index, "not a Megatron index");
  uint64_t version = 0, sequences = 0, documents = 0;
  std::memcpy(&version, header.data() + 9, 8);
  std::memcpy(&sequences, header.data() + 18, 8);
  std::memcpy(&documents, header.data() + 26, 8);
  if (version != 1) refuse(index, fmt::format("its version {} is not 1", version));
  const size_t left = header.size() - kHeaderBytes;
  if (sequences > left / 12 || documents > (left - sequences * 12) / 8)
    refuse(index, fmt::format("it claims {} sequences and {} documents, its {} bytes hold fewer", sequences, documents,
                              header.size()));
  const int code = static_cast<int>(header[17]);
  const std::optional<FlatType> type = code == 8   ? npy_type("'<u2'")
                                       : code == 4 ? npy_type("'<i4'")
                                       : code == 5 ? npy_type("'<i8'")
                                                   : std::nullopt;
  if (!type) refuse(index, fmt::format("its type code {} is none of uint16 (8), int32 (4), int64 (5)", code));
  uint64_t total = 0;
  std::vector<int64_t> starts;  // of the sequences, and their end
  for (size_t i = 0; i < sequences; ++i) {
    int32_t length = 0;
    std::memcpy(&length, header.data() + kHeaderBytes + i * 4, 4);
    if (length < 0) refuse(index, fmt::format("the length {} of sequence {} is negative", length, i));
    starts.push_back(static_cast<int64_t>(total));
    total += static_cast<uint64_t>(length);
  }
  starts.push_back(static_cast<int64_t>(total));
  if (data.bytes().size() % type->bytes != 0 || data.bytes().size() / type->bytes != total)
    refuse(path, fmt::format("its index claims {} tokens of {} bytes, it holds {} bytes", total, type->bytes,
                             data.bytes().size()));
  TokenDataset result{.ids = type->widen(data.bytes()), .tokenizer_digest = ""};
  // The table ends with the number of sequences. Documents without tokens are dropped.
  for (size_t i = 0, before = 0; i < documents; ++i) {
    uint64_t sequence = 0;
    std::memcpy(&sequence, header.data() + kHeaderBytes + sequences * 12 + i * 8, 8);
    if (sequence > sequences || sequence < before || (i == 0 && sequence != 0))
      refuse(index,
             fmt::format("document {} begins with sequence {}: they must rise from 0 to {}", i, sequence, sequences));
    before = sequence;
    const int64_t start = starts[sequence];
    if (start < static_cast<int64_t>(total) && (result.documents.empty() || start > result.documents.back()))
      result.documents.push_back(start);
  }
  return result;
}

/// The header of llm.c (dev/data/data_common.py): 256 int32, the first the magic, then version and token count.
struct LlmcForm {
  int32_t magic, version;
  const char* descr;
};
constexpr LlmcForm kLlmcForms[] = {{20240520, 1, "'<u2'"}, {20240801, 7, "'<u4'"}};

TokenDataset read_bin(const std::filesystem::path& path) {
  std::filesystem::path index = path;
  index.replace_extension(".idx");
  if (std::filesystem::exists(index)) return read_megatron(path, index);
  const MappedFile file(path);
  const auto bytes = file.bytes();
  constexpr size_t kHeaderBytes = 1024;
  int32_t header[3] = {};
  if (bytes.size() >= kHeaderBytes) std::memcpy(header, bytes.data(), sizeof(header));
  for (const LlmcForm& form : kLlmcForms) {
    if (header[0] != form.magic) continue;
    if (header[1] != form.version) refuse(path, fmt::format("its llm.c version {} is not {}", header[1], form.version));
    const FlatType type = *npy_type(form.descr);
    const auto data = bytes.subspan(kHeaderBytes);
    if (header[2] < 0 || data.size() % type.bytes != 0 || data.size() / type.bytes != static_cast<uint64_t>(header[2]))
      refuse(path, fmt::format("its header claims {} tokens of {} bytes, {} bytes follow", header[2], type.bytes,
                               data.size()));
    return {.ids = type.widen(data), .tokenizer_digest = ""};
  }
  if (bytes.size() % 2 != 0) refuse(path, fmt::format("{} bytes are no list of uint16", bytes.size()));
  return {.ids = widen<uint16_t>(bytes), .tokenizer_digest = ""};
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

void check_ids(const std::filesystem::path& path, const TokenDataset& dataset) {
  const int64_t limit = dataset.vocab_size > 0 ? dataset.vocab_size : kMaxId + 1;
  for (size_t i = 0; i < dataset.ids.size(); ++i) {
    if (dataset.ids[i] < 0 || dataset.ids[i] >= limit)
      refuse(path, fmt::format("token {} is {}, ids are from 0 to {}", i, dataset.ids[i], limit - 1));
  }
}

}  // namespace

void check_documents(const std::vector<int64_t>& documents, size_t tokens, const std::string& origin) {
  for (size_t i = 0; i < documents.size(); ++i) {
    const int64_t start = documents[i];
    const bool in_order = i == 0 ? start == 0 : start > documents[i - 1];
    if (!in_order || static_cast<uint64_t>(start) >= tokens) {
      throw ConfigError(
          fmt::format("{}: document {} begins at token {}: documents must rise from 0 and lie within the {} "
                      "tokens",
                      origin, i, start, tokens));
    }
  }
}

void append_tokens(TokenDataset& to, const TokenDataset& from, size_t begin, size_t end) {
  if (begin >= end) return;
  const auto shift = static_cast<int64_t>(to.ids.size()) - static_cast<int64_t>(begin);
  std::vector<int64_t> starts = {static_cast<int64_t>(begin)};
  std::copy_if(from.documents.begin(), from.documents.end(), std::back_inserter(starts),
               [&](int64_t start) { return start > static_cast<int64_t>(begin) && start < static_cast<int64_t>(end); });
  const std::vector<int64_t> ids(from.ids.begin() + static_cast<int64_t>(begin),
                                 from.ids.begin() + static_cast<int64_t>(end));
  if (to.documents.empty() && !to.ids.empty()) to.documents.push_back(0);
  to.ids.insert(to.ids.end(), ids.begin(), ids.end());
  for (const int64_t start : starts) to.documents.push_back(start + shift);
}

std::vector<int64_t> documents_by_marks(const std::vector<int64_t>& ids, const DocumentMarks& marks) {
  std::vector<int64_t> documents;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i == 0 || ids[i] == marks.first || ids[i - 1] == marks.last) documents.push_back(static_cast<int64_t>(i));
  }
  return documents;
}

void write_token_dataset(const std::filesystem::path& path, const TokenDataset& dataset) {
  check_ids(path, dataset);
  check_documents(dataset.documents, dataset.ids.size(), path.string());
  const int64_t top = dataset.ids.empty() ? 0 : *std::max_element(dataset.ids.begin(), dataset.ids.end());
  const bool narrow = std::max(top + 1, dataset.vocab_size) <= 65536;
  std::vector<std::byte> bytes(dataset.ids.size() * (narrow ? 2 : 4));
  for (size_t i = 0; i < dataset.ids.size(); ++i) {
    const auto wide = static_cast<uint32_t>(dataset.ids[i]);
    std::memcpy(bytes.data() + i * (narrow ? 2 : 4), &wide, narrow ? 2 : 4);  // little-endian: the low bytes come first
  }
  constexpr uint64_t kMetadataRoom = uint64_t{1} << 16;  // what libhdf5 and the seal add
  AtomicFile file(path);
  file.reserve(bytes.size() + dataset.documents.size() * sizeof(int64_t) + kMetadataRoom);
  Hdf5Writer writer(file.temporary_path());
  writer.create(kDataset, narrow ? Dtype::kU16 : Dtype::kU32, {static_cast<int64_t>(dataset.ids.size())});
  writer.write_rows(kDataset, 0, bytes);
  writer.set_attribute(kDataset, "vocab_size", std::to_string(dataset.vocab_size));
  writer.set_attribute(kDataset, "tokenizer_digest", dataset.tokenizer_digest);
  if (!dataset.documents.empty()) {
    writer.create(kDocuments, Dtype::kI64, {static_cast<int64_t>(dataset.documents.size())});
    writer.write_rows(kDocuments, 0, std::as_bytes(std::span(dataset.documents)));
  }
  writer.close();
  for (const Hdf5Dataset& stored : Hdf5Reader(file.temporary_path()).datasets()) {
    // The digest of the seal covers the documents too.
    if (stored.name == kDataset) seal_hdf5(file.temporary_path(), {{stored.offset, stored.bytes}});
  }
  file.commit();
}

TokenDataset read_token_dataset(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  TokenDataset dataset;
  if (extension == ".h5" || extension == ".hdf5") {
    dataset = read_hdf5(path);
  } else if (extension == ".npy") {
    dataset = read_npy(path);
  } else if (extension == ".bin") {
    dataset = read_bin(path);
  } else {
    dataset = read_text_ids(path);
  }
  check_ids(path, dataset);
  return dataset;
}

}  // namespace cinch
