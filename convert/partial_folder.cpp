#include "convert/partial_folder.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include "checkpoints/checkpoint_format.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/progress.h"
#include "model/model_source.h"

namespace cinch {
namespace {

constexpr const char* kState = "state.json";
constexpr const char* kPublishing = "publishing";

/// std::filesystem's errors as ours, so that a full or read-only disk gets its exit code.
template <typename Body>
decltype(auto) on_disk(const char* what, const std::filesystem::path& path, Body&& body) {
  try {
    return body();
  } catch (const std::filesystem::filesystem_error& error) {
    throw_system_error(what, path, error.code().value());
  }
}

/// Device and file number: they stay the same when a file or folder is renamed.
std::string file_identity(const std::filesystem::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return {};
  return fmt::format("{} {}", status.st_dev, status.st_ino);
}

void flatten(const Json& value, const std::string& path, std::map<std::string, Json>& leaves) {
  if (!value.is_structured() || value.empty()) {
    leaves[path] = value;
    return;
  }
  for (const auto& [key, inner] : value.items()) flatten(inner, path.empty() ? key : path + "." + key, leaves);
}

std::string leaf_text(const std::map<std::string, Json>& leaves, const std::string& key) {
  const auto found = leaves.find(key);
  return found == leaves.end() ? "absent" : found->second.dump();
}

/// Both names swap in one step; false when the file system cannot.
bool exchange(const std::filesystem::path& a, const std::filesystem::path& b) {
  return ::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

void rename_or_throw(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_system_error("cannot write", to, errno);
}

}  // namespace

std::vector<std::string> identity_differences(const Json& before, const Json& now) {
  std::map<std::string, Json> old_leaves, new_leaves;
  flatten(before, "", old_leaves);
  flatten(now, "", new_leaves);
  std::set<std::string> keys;
  for (const auto& [key, value] : old_leaves) keys.insert(key);
  for (const auto& [key, value] : new_leaves) keys.insert(key);
  std::vector<std::string> differences;
  for (const std::string& key : keys) {
    const std::string then = leaf_text(old_leaves, key), today = leaf_text(new_leaves, key);
    if (then != today) differences.push_back(fmt::format("{}: was {}, now {}", key, then, today));
  }
  return differences;
}

std::filesystem::path PartialFolder::path_for(const std::filesystem::path& output) {
  return output.parent_path() / fmt::format(".{}.cinch-partial", output.filename().string());
}

Json PartialFolder::recorded_identity(const std::filesystem::path& output) {
  const std::filesystem::path state = path_for(output) / kState;
  if (!std::filesystem::exists(state)) return nullptr;
  return parse_json(read_text(state), state.string());
}

std::filesystem::path PartialFolder::create(const std::filesystem::path& folder) {
  on_disk("cannot create", folder, [&] { std::filesystem::create_directories(folder); });
  return folder;
}

PartialFolder::PartialFolder(const std::filesystem::path& output, const Json& identity, Start start)
    : output_(output), folder_(create(path_for(output))), lock_(folder_, "converting to this output") {
  const Json recorded = recorded_identity(output);
  if (!recorded.is_null() && start == Start::fresh) {
    throw UsageError(fmt::format("{}: an unfinished conversion to this output is here", folder_.string()),
                     "go on with it (--resume) or start over (--force)");
  }
  if (recorded.is_null() || start != Start::resume) {
    start_over(identity);
    return;
  }
  const std::vector<std::string> differences = identity_differences(recorded, identity);
  if (!differences.empty()) {
    throw UsageError(
        fmt::format("--resume: the unfinished conversion was started differently: {}", fmt::join(differences, "; ")),
        "repeat the command it was started with, or start over with --force");
  }
  while (has_layer(resumed_layers_)) ++resumed_layers_;
}

void PartialFolder::start_over(const Json& identity) const {
  on_disk("cannot clear", folder_, [&] {
    // The state goes first: what is left without it counts as nothing.
    std::filesystem::remove(folder_ / kState);
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      if (entry.path().filename() != "lock") std::filesystem::remove_all(entry.path());
    }
    std::filesystem::create_directory(folder_ / "layers");
  });
  write_text(folder_ / kState, identity.dump(1) + "\n");
}

std::filesystem::path PartialFolder::layer_file(int64_t layer) const {
  return folder_ / "layers" / fmt::format("{:05}.safetensors", layer);
}

bool PartialFolder::has_layer(int64_t layer) const { return std::filesystem::exists(layer_file(layer)); }

void PartialFolder::store_layer(int64_t layer, const std::map<std::string, StoredTensor>& tensors,
                                const Json& report) const {
  const auto sink = checkpoint_format("safetensors")
                        .create({.path = layer_file(layer), .metadata = {{"report", report.dump()}}, .shard_bytes = 0});
  std::vector<TensorInfo> infos;
  for (const auto& [name, stored] : tensors) infos.push_back({name, stored.dtype, stored.tensor.sizes().vec(), {}});
  sink->declare(infos);
  for (const auto& [name, stored] : tensors) sink->write(name, to_bytes(stored.tensor, stored.dtype));
  sink->commit();
}

PartialFolder::StoredLayer PartialFolder::load_layer(int64_t layer) const {
  const auto source = open_tensors(layer_file(layer));
  StoredLayer stored;
  for (const TensorInfo& info : source->tensors()) {
    stored.tensors[info.name] = to_torch(source->read(info.name), torch_dtype(info.dtype)).clone();
  }
  stored.report = parse_json(source->metadata().at("report"), layer_file(layer).string());
  return stored;
}

std::filesystem::path PartialFolder::prepare_result() const {
  const std::filesystem::path result = folder_ / "result";
  on_disk("cannot write", result, [&] {
    std::filesystem::remove_all(result);
    std::filesystem::create_directory(result);
  });
  return result / output_.filename();
}

void PartialFolder::publish() const {
  const std::filesystem::path result = folder_ / "result" / output_.filename();
  write_text(folder_ / kPublishing, file_identity(result));
  if (!std::filesystem::exists(output_)) {
    rename_or_throw(result, output_);
  } else if (!exchange(result, output_)) {
    const std::filesystem::path replaced = folder_ / "replaced";
    rename_or_throw(output_, replaced);
    rename_or_throw(result, output_);
  }
  sync_folder(output_.parent_path().empty() ? "." : output_.parent_path());
}

void PartialFolder::discard() {
  std::error_code fault;
  // The state goes last: until then a killed process can be resumed, and then finds the published output.
  for (const char* name : {"layers", "moments.h5", "result", "replaced", kState, kPublishing})
    std::filesystem::remove_all(folder_ / name, fault);
  std::filesystem::remove_all(folder_, fault);
  if (fault) log_warning(fmt::format("cannot remove {}: {}", folder_.string(), fault.message()));
}

bool PartialFolder::was_published(const std::filesystem::path& output) {
  const std::filesystem::path note = path_for(output) / kPublishing;
  if (!std::filesystem::exists(note)) return false;
  const std::string recorded = read_text(note);
  return !recorded.empty() && recorded == file_identity(output);
}

}  // namespace cinch
