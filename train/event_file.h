// Scalars of a run as TensorBoard reads them: a file events.out.tfevents.<time>.<host>.<pid> of records, each a
// tensorflow.Event (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto) in the framing of
// TFRecord (tensorflow/core/lib/io/record_writer.h). Three messages of at most four fields are written: their encoding
// is a few lines here, where a protobuf library would be a dependency of everybody who builds cinch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/json.h"

namespace cinch {

struct EventScalar {
  std::string tag;
  double value = 0;  // kept as float32
};

/// A line of metrics.jsonl as scalars: every number and truth value but "step", under the tag train/<key>.
std::vector<EventScalar> event_scalars(const Json& line);

class EventFile {
 public:
  /// Begins a new file in `folder` (which is made) for a run that goes on with step `first_step`: TensorBoard joins the
  /// files of a folder in the order of their names, which is that of their making here even where the clock goes back,
  /// and drops what earlier files say of `first_step` and later steps. Throws Error or ResourceError naming the file.
  EventFile(const std::filesystem::path& folder, int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  /// One record, handed to the system before this returns. Throws Error or ResourceError naming the file.
  void add(int64_t step, std::span<const EventScalar> scalars);
  const std::filesystem::path& path() const { return path_; }

 private:
  void write_record(const std::string& event);

  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// CRC-32C (Castagnoli; RFC 3720, appendix B.4), which TFRecord stores "masked".
uint32_t crc32c(std::span<const std::byte> bytes);

}  // namespace cinch
