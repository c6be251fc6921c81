// The moments of the original model (solvers/latent_moments.h) on disk: measured once, used for any budget, rank and
// method that fits on them. An HDF5 file of the native container (docs/formats.md): datasets "layers.N.joint", ...,
// digests checked on reading, and what it was measured on as metadata.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "checkpoints/tensor_sink.h"
#include "checkpoints/tensor_source.h"
#include "convert/solvers/latent_moments.h"
#include "core/json.h"

namespace cinch {

/// What moments depend on, from a run's identity (provenance.h): the source's files and the calibration tokens.
Json moment_identity(const Json& run_identity);

class MomentFile {
 public:
  /// Throws UsageError when it is not such a file, or was measured on other files than `identity` says (naming them);
  /// only the keys that `identity` has are compared.
  MomentFile(const std::filesystem::path& path, const Json& identity);

  /// Throws CheckpointError when the layer is missing or its bytes have changed.
  LatentMoments load(int64_t layer) const;
  bool has_layer(int64_t layer) const;
  const Json& identity() const { return identity_; }

 private:
  std::filesystem::path path_;
  std::unique_ptr<TensorSource> source_;
  Json identity_;
};

/// Writes one; until commit only a temporary name exists.
class MomentWriter {
 public:
  /// `layers` will be stored, `windows` of `length` tokens are fitted on. Claims the disk space. Throws ResourceError.
  MomentWriter(const std::filesystem::path& path, const Json& identity, const std::vector<int64_t>& layers,
               const std::vector<AttentionSpec>& specs, int64_t windows, int64_t length);
  void store(int64_t layer, const LatentMoments& moments);
  void commit();

 private:
  std::unique_ptr<TensorSink> sink_;
};

/// Bytes that the moments of these layers take on disk.
uint64_t moment_bytes(const std::vector<int64_t>& layers, const std::vector<AttentionSpec>& specs, int64_t windows,
                      int64_t length);

}  // namespace cinch
