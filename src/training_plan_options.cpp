#include "src/training_plan_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "core/errors.h"
#include "model/config_source.h"
#include "src/byte_size.h"
#include "src/device.h"
#include "src/model_argument.h"
#include "src/usage_errors.h"
#include "train/planning/device_speed.h"
#include "train/planning/loss_bytes.h"

namespace cinch {
namespace {

/// Of this machine, whose CPU all processes of a run share.
DeviceLimits found_limits(const TrainingPlanRequest& request, const std::string& device_name, const std::string& dtype,
                          bool wants_flops) {
  const c10::Device device = open_device(device_name);
  const int64_t sharers = device.is_cpu() ? request.world : 1;
  DeviceLimits limits{.memory_bytes = free_memory_bytes(device) / sharers};
  if (wants_flops) {
    limits.flops = kTrainingShare * matrix_product_flops(device, compute_dtype(dtype)) / static_cast<double>(sharers);
  }
  return limits;
}

}  // namespace

std::shared_ptr<ModelSource> open_planned(const std::string& path, const std::string& flag) {
  return std::filesystem::path(path).extension() == ".json" ? open_config(path) : open_model(path, flag);
}

void add_training_plan_options(CLI::App& command, TrainingPlanFlags& flags) {
  TrainingPlanRequest& request = flags.request;
  request.tokens = 100'000'000;
  CLI::Option* uptrain =
      command.add_flag("--uptrain", flags.uptrain,
                       "Plan the uptraining too: memory per process, speed, time. Without --to MODEL is the student");
  const auto group = [&](CLI::Option* option) { return option->needs(uptrain)->group("With --uptrain"); };
  group(command.add_option("--teacher", flags.teacher,
                           "Model that the student learns from, a config.json will do (with --to: MODEL)"))
      ->type_name("PATH");
  group(command.add_option("--tokens", request.tokens, "Tokens to train on"))->capture_default_str()->type_name("INT");
  group(command.add_option("--window", request.window, "Tokens of a sample"))->capture_default_str()->type_name("INT");
  flags.batch = group(command.add_option("--batch", request.batch,
                                         "Samples of a step (default: 8, or a micro-batch of every process)"))
                    ->type_name("INT");
  flags.micro_batch = group(command.add_option("--micro-batch", request.micro_batch,
                                               "Samples that a process runs at once (default: 4, or its share)"))
                          ->type_name("INT");
  group(command.add_option("--world", request.world, "Processes, one on each device"))
      ->capture_default_str()
      ->type_name("INT");
  group(command.add_option("--trainable", flags.trainable, "What is trained"))
      ->capture_default_str()
      ->type_name("attention|all");
  group(command.add_option("--train-dtype", flags.dtype, "Type to compute in: uptrain's --dtype"))
      ->capture_default_str()
      ->type_name("f32|bf16|f64");
  group(command.add_flag("--recompute", request.recompute,
                         "Keep one activation per layer, run layers again for gradients"));
  group(command.add_option("--device-memory", flags.device_memory,
                           "Of one device, as 80GiB (default: what --device has here)"))
      ->type_name("SIZE");
  group(command.add_option("--device-flops", flags.device_flops,
                           "Operations per second that training sustains on one device, as 400e12 (default: measured "
                           "here, unless --device-memory is another's)"))
      ->type_name("NUMBER");
}

PlannedTraining plan_of_flags(const TrainingPlanFlags& flags, const ModelConfig& student,
                              const std::optional<ModelConfig>& teacher, const std::string& device) {
  require_choice("--trainable", flags.trainable, {"attention", "all"});
  require_choice("--train-dtype", flags.dtype, {"f32", "bf16", "f64"});
  if (flags.device_flops < 0)
    throw UsageError(fmt::format("--device-flops {}: expected a number above 0", flags.device_flops));
  const bool cuda = device.starts_with("cuda");
  if (!cuda && device != "cpu") (void)open_device(device);  // says what is known

  TrainingPlanRequest request = flags.request;
  request.student = student;
  request.teacher = teacher;
  request.trains_all = flags.trainable == "all";
  request.compute_bytes = flags.dtype == "bf16" ? 2 : flags.dtype == "f64" ? 8 : 4;
  request.on_cpu = !cuda;
  request.chunk_bytes = loss_chunk_bytes(request.on_cpu);
  if (request.world > 0) {
    if (flags.micro_batch->empty() && !flags.batch->empty())
      request.micro_batch = std::clamp<int64_t>(request.batch / request.world, 1, request.micro_batch);
    if (flags.batch->empty()) request.batch = std::max(request.batch, request.micro_batch * request.world);
  }
  request.check();

  PlannedTraining planned{.plan = plan_training(request), .device = {.flops = flags.device_flops}};
  if (!flags.device_memory.empty()) {
    planned.device.memory_bytes = static_cast<int64_t>(parse_byte_size("--device-memory", flags.device_memory));
    return planned;
  }
  const DeviceLimits found = found_limits(request, device, flags.dtype, flags.device_flops == 0);
  planned.device.memory_bytes = found.memory_bytes;
  if (flags.device_flops == 0) planned.device.flops = found.flops;
  return planned;
}

}  // namespace cinch
