#include "train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "checkpoints/checkpoint_format.h"
#include "core/digest.h"
#include "core/errors.h"
#include "core/files.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;
constexpr const char* kState = "state.safetensors";
constexpr const char* kManifest = "manifest.json";
constexpr const char* kPrefix = "step_";

/// Steps whose states are complete, oldest first.
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

fs::path state_folder(const fs::path& folder, int64_t step) { return folder / fmt::format("{}{}", kPrefix, step); }

}  // namespace

void TrainRecipe::check() const {
  schedule.check();
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw UsageError(what);
  };
  require(loss.cross_entropy >= 0 && loss.distillation >= 0 && loss.cross_entropy + loss.distillation > 0,
          fmt::format("loss weights {} and {}: expected at least one above 0", loss.cross_entropy, loss.distillation));
  require(batch > 0 && micro_batch > 0 && batch % micro_batch == 0,
          fmt::format("a batch of {} does not divide into parts of {}", batch, micro_batch));
  require(std::isfinite(learning_rate) && learning_rate >= 0 && std::isfinite(trunk_learning_rate) &&
              trunk_learning_rate >= 0 && weight_decay >= 0 && clip >= 0,
          "learning rates, weight decay and clip are finite and not negative");
}

Json TrainRecipe::to_json() const {
  return {{"cross_entropy", loss.cross_entropy},
          {"distillation", loss.distillation},
          {"learning_rate", learning_rate},
          {"trunk_learning_rate", trunk_learning_rate},
          {"weight_decay", weight_decay},
          {"clip", clip},
          {"betas", {adamw.beta1, adamw.beta2}},
          {"eps", adamw.eps},
          {"schedule", schedule.kind},
          {"steps", schedule.steps},
          {"warmup_steps", schedule.warmup_steps},
          {"decay_share", schedule.decay_share},
          {"floor", schedule.floor},
          {"batch", batch}};
}

Trainer::Trainer(TrainedModel& model, const Teacher* teacher, const TokenSamples& samples, const TrainRecipe& recipe)
    : model_(model), teacher_(teacher), samples_(samples), recipe_(recipe) {
  recipe_.check();
  if (recipe_.loss.distillation > 0 && teacher == nullptr) throw UsageError("distillation needs a teacher");
  std::vector<AdamWGroup> groups;
  for (const bool attention : {true, false}) {
    for (const bool matrix : {true, false}) {
      AdamWGroup group{.parameters = {},
                       .learning_rate = attention ? recipe_.learning_rate : recipe_.trunk_learning_rate,
                       .weight_decay = matrix ? recipe_.weight_decay : 0.0};
      for (const Parameter& parameter : model.parameters()) {
        if (parameter.attention != attention || (parameter.value.dim() > 1) != matrix) continue;
        group.parameters.push_back(parameter.value);
        order_.push_back(&parameter);
      }
      groups.push_back(std::move(group));
    }
  }
  optimizer_.emplace(std::move(groups), recipe_.adamw);
}

StepReport Trainer::step() {
  optimizer_->zero_grad();
  StepReport report;
  const int64_t tokens = recipe_.batch * samples_.length();
  for (int64_t done = 0; done < recipe_.batch; done += recipe_.micro_batch) {
    const TokenSamples::Batch batch = samples_.batch(steps_done_ * recipe_.batch + done, recipe_.micro_batch);
    LossInputs inputs{.hidden = model_.hidden(batch.ids).flatten(0, 1),
                      .head = model_.head(),
                      .teacher_hidden = {},
                      .teacher_head = {},
                      .targets = batch.targets.flatten()};
    if (recipe_.loss.distillation > 0) {
      inputs.teacher_hidden = teacher_->hidden(batch.ids).flatten(0, 1);
      inputs.teacher_head = teacher_->head();
    }
    const LossValue loss = linear_cross_entropy_kd(inputs, {.weights = recipe_.loss,
                                                            .softcap = model_.config().final_logit_softcap,
                                                            .denominator = tokens,
                                                            .chunk_bytes = recipe_.chunk_bytes});
    loss.total.backward();
    report.loss += loss.total.item<double>();
    report.cross_entropy += loss.cross_entropy.item<double>();
    report.distillation += loss.distillation.item<double>();
  }
  report.gradient_norm = optimizer_->clip(recipe_.clip).item<double>();
  report.skipped = !std::isfinite(report.gradient_norm);
  const double factor = recipe_.schedule.factor(steps_done_);
  report.learning_rate = recipe_.learning_rate * factor;
  if (!report.skipped) optimizer_->step(factor);
  report.step = ++steps_done_;
  return report;
}

Json Trainer::identity() const {
  Json json = recipe_.to_json();
  json["data"] = samples_.digest();
  json["window"] = samples_.length();
  return json;
}

void Trainer::save(const fs::path& folder, int keep) const {
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (failure) throw_system_error("cannot create", folder, failure.value());
  const fs::path target = state_folder(folder, steps_done_);
  fs::path temporary = target;
  temporary += ".tmp";
  fs::remove_all(temporary, failure);
  fs::create_directory(temporary, failure);
  if (failure) throw_system_error("cannot create", temporary, failure.value());

  const auto sink = checkpoint_format("safetensors").create({.path = temporary / kState});
  std::vector<TensorInfo> infos;
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  const auto& states = optimizer_->state();
  for (size_t i = 0; i < order_.size(); ++i) {
    const std::string& name = order_[i]->name;
    tensors.emplace_back("value." + name, order_[i]->value.detach());
    tensors.emplace_back("mean." + name, states[i].mean);
    tensors.emplace_back("square." + name, states[i].square);
    tensors.emplace_back("steps." + name, states[i].steps);
  }
  for (const auto& [name, tensor] : tensors)
    infos.push_back({name, file_dtype(tensor.scalar_type()), tensor.sizes().vec(), ""});
  sink->declare(infos);
  for (const auto& [name, tensor] : tensors)
    sink->write(name, to_bytes(tensor.cpu(), file_dtype(tensor.scalar_type())));
  sink->commit();
  const Json manifest = {{"step", steps_done_}, {"identity", identity()}, {"digests", sink->digests()}};
  write_text(temporary / kManifest, manifest.dump(1) + "\n");
  sync_folder(temporary);
  fs::remove_all(target, failure);
  fs::rename(temporary, target, failure);
  if (failure) throw_system_error("cannot write", target, failure.value());
  sync_folder(folder);
  const std::vector<int64_t> steps = saved_steps(folder);
  for (size_t i = 0; i + static_cast<size_t>(std::max(keep, 1)) < steps.size(); ++i)
    fs::remove_all(state_folder(folder, steps[i]), failure);
}

bool Trainer::resume(const fs::path& folder) {
  const std::vector<int64_t> steps = saved_steps(folder);
  if (steps.empty()) return false;
  const fs::path state = state_folder(folder, steps.back());
  return with_context(fmt::format("resuming from {}", state.string()), [&] {
    const JsonObject manifest = JsonObject::from_file(state / kManifest);
    const Json recorded = manifest.object("identity").json(), own = identity();
    for (const auto& [key, value] : own.items()) {
      if (!recorded.contains(key) || recorded.at(key) != value) {
        throw ConfigError(fmt::format("{}: {} is {}, this run's is {}", (state / kManifest).string(), key,
                                      recorded.contains(key) ? recorded.at(key).dump() : "missing", value.dump()),
                          "resume with the options of the run that wrote it, or start over in another folder");
      }
    }
    const auto source = open_tensors(state / kState);
    const Json digests = manifest.object("digests").json();
    const auto read = [&](const std::string& name, const at::Tensor& like) {
      const TensorData data = source->read(name);
      if (!digests.contains(name) || digests.at(name) != xxh3_hex(data.bytes))
        throw CheckpointError(fmt::format("{}: tensor \"{}\" is not what was saved", (state / kState).string(), name));
      const at::Tensor found = to_torch(data, like.scalar_type());
      if (found.sizes() != like.sizes()) {
        throw CheckpointError(fmt::format("{}: tensor \"{}\" has another shape", (state / kState).string(), name));
      }
      return found.clone().to(like.device());
    };
    const at::NoGradGuard no_grad;
    auto& states = optimizer_->state();
    for (size_t i = 0; i < order_.size(); ++i) {
      const std::string& name = order_[i]->name;
      at::Tensor value = order_[i]->value;
      value.copy_(read("value." + name, value));
      states[i] = {read("mean." + name, states[i].mean), read("square." + name, states[i].square),
                   read("steps." + name, states[i].steps)};
    }
    steps_done_ = manifest.integer("step");
    return true;
  });
}

}  // namespace cinch
