#include "train/train_state.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "checkpoints/checkpoint_format.h"
#include "core/digest.h"
#include "core/errors.h"
#include "core/files.h"
#include "model/model_source.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kPrefix = "step_";

fs::path state_folder(const fs::path& folder, int64_t step) { return folder / fmt::format("{}{}", kPrefix, step); }

fs::path temporary_folder(const fs::path& folder, int64_t step) {
  fs::path path = state_folder(folder, step);
  return path += ".tmp";
}

std::string share_name(int64_t rank, int64_t world) { return fmt::format("share_{}_of_{}", rank, world); }

void make_folder(const fs::path& folder) {
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (failure) throw_system_error("cannot create", folder, failure.value());
}

/// The file of tensors, and beside it their digests, which go into the manifest.
void write_share(const fs::path& folder, const std::string& name, const std::vector<StateShare>& shares) {
  const auto sink = checkpoint_format("safetensors").create({.path = folder / (name + ".safetensors")});
  std::vector<TensorInfo> infos;
  for (const StateShare& share : shares)
    infos.push_back({share.name, file_dtype(share.value.scalar_type()), share.value.sizes().vec(), ""});
  sink->declare(infos);
  for (const StateShare& share : shares)
    sink->write(share.name, to_bytes(share.value, file_dtype(share.value.scalar_type())));
  sink->commit();
  write_text(folder / (name + ".json"), Json(sink->digests()).dump() + "\n");
}

}  // namespace

std::vector<int64_t> saved_steps(const fs::path& folder) {
  std::vector<int64_t> steps;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix) || name.find_first_not_of("0123456789", 5) != std::string::npos || name.size() > 24)
      continue;
    if (fs::exists(entry.path() / kManifest)) steps.push_back(std::stoll(name.substr(5)));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

StateWriter::StateWriter(fs::path folder, std::shared_ptr<ProcessGroup> group, int keep)
    : folder_(std::move(folder)), group_(std::move(group)), keep_(std::max(keep, 1)) {}

StateWriter::~StateWriter() {
  if (writing_.valid()) writing_.wait();
}

void StateWriter::start(int64_t step, const std::vector<StateShare>& shares, Json manifest) {
  if (busy()) finish();
  step_ = step;
  manifest_ = std::move(manifest);
  manifest_["step"] = step;
  manifest_["world"] = group_->world();
  const fs::path target = temporary_folder(folder_, step);
  std::error_code ignored;
  if (group_->first()) fs::remove_all(target, ignored);
  group_->barrier();
  std::vector<StateShare> copies;
  for (const StateShare& share : shares) copies.push_back({share.name, share.value.detach().to(at::kCPU).clone()});
  writing_ = std::async(std::launch::async,
                        [target, name = share_name(group_->rank(), group_->world()), copies = std::move(copies)] {
                          make_folder(target);
                          write_share(target, name, copies);
                        });
}

bool StateWriter::written() const {
  return !busy() || writing_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

void StateWriter::finish() {
  if (!busy()) return;
  std::exception_ptr failure;
  try {
    writing_.get();
  } catch (...) {
    failure = std::current_exception();
  }
  std::vector<double> failed = {failure ? 1.0 : 0.0};
  group_->largest(failed);
  if (failure) std::rethrow_exception(failure);
  if (failed[0] > 0) throw ResourceError("another process could not write its share of the state");
  const fs::path from = temporary_folder(folder_, step_), to = state_folder(folder_, step_);
  if (group_->first()) {
    Json digests = Json::object();
    for (int64_t rank = 0; rank < group_->world(); ++rank) {
      const fs::path file = from / (share_name(rank, group_->world()) + ".json");
      if (!fs::exists(file)) {
        throw ResourceError(fmt::format("{} is not seen by the first process", file.string()),
                            "write to a file system that all processes share");
      }
      digests[share_name(rank, group_->world())] = JsonObject::from_file(file).json();
      fs::remove(file);
    }
    manifest_["digests"] = digests;
    write_text(from / kManifest, manifest_.dump(1) + "\n");
    sync_folder(from);
    std::error_code failure_code;
    fs::remove_all(to, failure_code);
    fs::rename(from, to, failure_code);
    if (failure_code) throw_system_error("cannot write", to, failure_code.value());
    sync_folder(folder_);
    const std::vector<int64_t> steps = saved_steps(folder_);
    for (size_t i = 0; i + static_cast<size_t>(keep_) < steps.size(); ++i)
      fs::remove_all(state_folder(folder_, steps[i]), failure_code);
  }
  group_->barrier();  // when it returns, the state is there for all
}

SavedState::SavedState(fs::path folder, JsonObject manifest)
    : folder_(std::move(folder)),
      manifest_(std::move(manifest)),
      step_(manifest_.size("step", 0)),
      world_(manifest_.size("world", 1, 1 << 20)) {}

std::optional<SavedState> SavedState::latest(const fs::path& folder) {
  const std::vector<int64_t> steps = saved_steps(folder);
  if (steps.empty()) return std::nullopt;
  const fs::path state = state_folder(folder, steps.back());
  return SavedState(state, JsonObject::from_file(state / kManifest));
}

at::Tensor SavedState::read(const std::string& name, int64_t size, int64_t first, int64_t count,
                            at::ScalarType type) const {
  const at::Tensor result = at::zeros({count}, at::TensorOptions(type));
  const int64_t share = FlatLayout({{name, {size}}}, static_cast<int>(world_)).share();
  const int64_t last = std::min(first + count, size);
  for (int64_t at = first; at < last;) {
    const int64_t rank = at / share, end = std::min(last, (rank + 1) * share);
    const std::string part = share_name(rank, world_);
    const fs::path file = folder_ / (part + ".safetensors");
    const auto source = open_tensors(file);
    const TensorInfo* info = source->find(name);
    if (info == nullptr || info->shape != std::vector<int64_t>{share}) {
      throw CheckpointError(fmt::format("{}: expected tensor \"{}\" of {} elements", file.string(), name, share),
                            "the state is of another model");
    }
    const TensorData data = source->read(name);
    const JsonObject digests = manifest_.object("digests").object(part);
    if (digests.string(name) != xxh3_hex(data.bytes)) {
      throw CheckpointError(fmt::format("{}: tensor \"{}\" is not what was saved", file.string(), name),
                            "the file was damaged; remove its folder to go on from the state before");
    }
    result.narrow(0, at - first, end - at).copy_(to_torch(data, type).narrow(0, at - rank * share, end - at));
    at = end;
  }
  return result;
}

}  // namespace cinch
