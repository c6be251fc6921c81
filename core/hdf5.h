// A small RAII layer over the HDF5 C API: the only place that calls it. Errors become CheckpointError (reading) or
// Error / ResourceError (writing), with HDF5's own printing switched off.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace cinch {

struct Hdf5Dataset {
  std::string name;  // full path without the leading slash
  Dtype dtype;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // of the contiguous raw data in the file
  uint64_t bytes = 0;
};

/// Lists the contiguous datasets at the root of a file; their bytes are read through a mapping of the file. libhdf5
/// itself is not safe on hostile files: callers check the seal first (core/hdf5_seal.h).
class Hdf5Reader {
 public:
  explicit Hdf5Reader(const std::filesystem::path& path);
  ~Hdf5Reader();
  std::vector<Hdf5Dataset> datasets() const;
  std::optional<std::string> text_attribute(const std::string& object,
                                            const std::string& name) const;  // object "" = root
  std::vector<std::string> attribute_names(const std::string& object) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes contiguous datasets whose data start at multiples of 4096 bytes. bf16 is a committed 2-byte type "bfloat16"
/// with the attribute "cinch_dtype"; other small floats likewise. The caller gives a temporary path and renames (see
/// AtomicFile for the habit).
class Hdf5Writer {
 public:
  explicit Hdf5Writer(const std::filesystem::path& path);
  ~Hdf5Writer();
  void create(const std::string& dataset, Dtype dtype, const std::vector<int64_t>& shape);
  /// Rows from `first_row` on, straight to the dataset's place in the file. Throws ShapeError when they do not fit.
  void write_rows(const std::string& dataset, int64_t first_row, std::span<const std::byte> bytes);
  /// The end of the data created so far.
  uint64_t data_end() const;
  void set_attribute(const std::string& object, const std::string& name, const std::string& value);
  void close();  // flushes; throws on failure

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cinch
