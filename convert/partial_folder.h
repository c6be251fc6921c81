// The resumable state of a conversion: a folder beside the output, ".NAME.cinch-partial", holding
//   state.json             what is being converted (compared key by key on resume)
//   moments.h5             moments of the original's layers, for methods that use them
//   layers/NNNNN.safetensors  the new attention of each finished layer, in the output's type, with its report in the
//   header; written atomically result/NAME            the output under construction; renamed to its real name once it
//   is complete and verified
// A process killed at any moment leaves either no state.json (nothing to resume) or a folder from which the same bytes
// follow.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/folder_lock.h"
#include "core/json.h"

namespace cinch {

class PartialFolder {
 public:
  enum class Start {
    fresh,
    resume,
    replace
  };  // nothing may be there; go on with what is there; throw away what is there

  /// Takes the folder for `output`, creating it, and locks it against other processes. Throws UsageError when work is
  /// there and `start` is fresh, or when the recorded `identity` differs on resume (naming the keys).
  PartialFolder(const std::filesystem::path& output, const Json& identity, Start start);
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

  static std::filesystem::path path_for(const std::filesystem::path& output);
  /// The identity recorded for `output`, null when there is nothing to resume.
  static Json recorded_identity(const std::filesystem::path& output);

  /// True when a killed run got as far as giving the output its name: nothing is left to do but to remove the partial
  /// folder.
  static bool was_published(const std::filesystem::path& output);

  /// Number of layers found finished when the folder was taken.
  int64_t resumed_layers() const { return resumed_layers_; }
  bool has_layer(int64_t layer) const;
  struct StoredTensor {
    Dtype dtype = Dtype::kF32;
    at::Tensor tensor;
  };
  void store_layer(int64_t layer, const std::map<std::string, StoredTensor>& tensors, const Json& report) const;
  struct StoredLayer {
    std::map<std::string, at::Tensor>
        tensors;  // as stored, freshly allocated, so that a resumed run computes on the same layout
    Json report;
  };
  StoredLayer load_layer(int64_t layer) const;

  /// Where moments of the original are kept for as long as the conversion lasts.
  std::filesystem::path moment_file() const { return folder_ / "moments.h5"; }

  /// Where the output is built; whatever an earlier run left there is removed first.
  std::filesystem::path prepare_result() const;
  /// Renames the result to the output's name; an existing output is exchanged for it in one step, then removed.
  void publish() const;
  /// Removes the folder; the conversion cannot be resumed afterwards.
  void discard();

 private:
  std::filesystem::path layer_file(int64_t layer) const;
  static std::filesystem::path create(const std::filesystem::path& folder);
  void start_over(const Json& identity) const;

  std::filesystem::path output_, folder_;
  FolderLock lock_;  // keeps other processes away
  int64_t resumed_layers_ = 0;
};

/// The keys (with values) in which two identities differ, for people: "method: mean, now aligned".
std::vector<std::string> identity_differences(const Json& before, const Json& now);

}  // namespace cinch
