// A seal behind the end of an HDF5 file that cinch wrote: a table of contents, the extents of the tensor data, and a
// digest of every byte that is not tensor data. cinch reads its own files through this table alone: libhdf5, which
// misbehaves on malformed metadata, never parses a file from outside when a model is opened. HDF5 tools ignore what
// follows the end of the HDF5 data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace cinch {

struct DataExtent {
  uint64_t offset = 0, size = 0;
};

/// Appends the seal: extents (sorted here; must be disjoint), table, trailer. Flushes.
void seal_hdf5(const std::filesystem::path& path, std::vector<DataExtent> extents, std::string_view table = {});

struct Hdf5Seal {
  std::string_view table;     // a view into the file
  uint64_t sealed_bytes = 0;  // length of the HDF5 file proper
};

/// Throws CheckpointError naming the file when the seal is missing or does not match. The digest finds damage, not
/// malice: whoever can write the file can write a seal, so a caller still checks everything in the table.
Hdf5Seal check_hdf5_seal(std::span<const std::byte> file, const std::filesystem::path& path);

}  // namespace cinch
