#include "core/hdf5_seal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "core/digest.h"
#include "core/errors.h"
#include "core/files.h"

namespace cinch {
namespace {

constexpr std::array<char, 8> kMagic = {'C', 'I', 'N', 'C', 'H', 'H', '5', '2'};

// Layout behind the HDF5 data: extents, table, then this.
struct Trailer {
  uint64_t sealed_bytes;  // length of the HDF5 file proper
  uint64_t n_extents;
  uint64_t table_bytes;
  std::array<char, 32> digest;  // XXH3-128, hexadecimal
  std::array<char, 8> magic;
};
static_assert(sizeof(Trailer) == 64);

std::string digest_of(std::span<const std::byte> file, std::span<const DataExtent> extents, std::string_view table) {
  Xxh3Digest digest;
  uint64_t position = 0;
  for (const DataExtent& extent : extents) {
    digest.update(file.subspan(position, extent.offset - position));
    position = extent.offset + extent.size;
  }
  digest.update(file.subspan(position));
  digest.update(std::as_bytes(extents));
  digest.update(std::as_bytes(std::span(table)));
  return digest.hex();
}

void append_and_flush(const std::filesystem::path& path, std::string_view tail) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (descriptor < 0) throw_system_error("cannot write", path, errno);
  int reason = 0;
  while (!tail.empty() && reason == 0) {
    const ssize_t written = ::write(descriptor, tail.data(), tail.size());
    if (written > 0) tail.remove_prefix(static_cast<size_t>(written));
    if (written < 0 && errno != EINTR) reason = errno;
  }
  if (reason == 0 && ::fsync(descriptor) != 0) reason = errno;
  ::close(descriptor);
  if (reason != 0) throw_system_error("cannot write", path, reason);
}

}  // namespace

void seal_hdf5(const std::filesystem::path& path, std::vector<DataExtent> extents, std::string_view table) {
  std::erase_if(extents, [](const DataExtent& extent) { return extent.size == 0; });
  std::sort(extents.begin(), extents.end(),
            [](const DataExtent& a, const DataExtent& b) { return a.offset < b.offset; });
  Trailer trailer{};
  {
    const MappedFile file(path);
    const std::string digest = digest_of(file.bytes(), extents, table);
    trailer.sealed_bytes = file.bytes().size();
    trailer.n_extents = extents.size();
    trailer.table_bytes = table.size();
    std::memcpy(trailer.digest.data(), digest.data(), trailer.digest.size());
    trailer.magic = kMagic;
  }
  std::string tail(reinterpret_cast<const char*>(extents.data()), extents.size() * sizeof(DataExtent));
  tail += table;
  tail.append(reinterpret_cast<const char*>(&trailer), sizeof(Trailer));
  append_and_flush(path, tail);
}

Hdf5Seal check_hdf5_seal(std::span<const std::byte> file, const std::filesystem::path& path) {
  const auto fail = [&](std::string_view rule) {
    throw CheckpointError(fmt::format("{}: {}", path.string(), rule),
                          "HDF5 models are read only as cinch wrote them; convert others to safetensors");
  };
  Trailer trailer{};
  if (file.size() < sizeof(Trailer)) fail("too short for a sealed HDF5 file");
  std::memcpy(&trailer, file.data() + file.size() - sizeof(Trailer), sizeof(Trailer));
  if (trailer.magic != kMagic) fail("the seal is missing (truncated, or not written by cinch)");
  const uint64_t before = file.size() - sizeof(Trailer);
  if (trailer.sealed_bytes > before || trailer.n_extents > before / sizeof(DataExtent) ||
      trailer.table_bytes > before ||
      trailer.sealed_bytes + trailer.n_extents * sizeof(DataExtent) + trailer.table_bytes != before) {
    fail("the seal's lengths do not match the file");
  }
  std::vector<DataExtent> extents(trailer.n_extents);
  if (!extents.empty())
    std::memcpy(extents.data(), file.data() + trailer.sealed_bytes, extents.size() * sizeof(DataExtent));
  uint64_t position = 0;
  for (const DataExtent& extent : extents) {
    if (extent.offset < position || extent.offset > trailer.sealed_bytes ||
        extent.size > trailer.sealed_bytes - extent.offset) {
      fail("the seal's data extents overlap or leave the file");
    }
    position = extent.offset + extent.size;
  }
  const std::string_view table(reinterpret_cast<const char*>(file.data()) + before - trailer.table_bytes,
                               trailer.table_bytes);
  const std::string digest = digest_of(file.first(trailer.sealed_bytes), extents, table);
  if (std::memcmp(digest.data(), trailer.digest.data(), trailer.digest.size()) != 0) {
    fail("the metadata are damaged (seal does not match)");
  }
  return {table, trailer.sealed_bytes};
}

}  // namespace cinch
