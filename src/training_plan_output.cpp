#include "src/training_plan_output.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/output.h"

namespace cinch {
namespace {

std::string bytes(int64_t count) { return human_bytes(static_cast<uint64_t>(count)); }
std::string count(int64_t number) { return human_count(static_cast<uint64_t>(number)); }

std::string heading(const TrainingPlan& plan) {
  const TrainingPlanRequest& r = plan.request;
  const char* type = r.compute_bytes == 2 ? "bf16" : r.compute_bytes == 8 ? "f64" : "f32";
  std::string text = fmt::format("Uptraining {} of {} parameters ({}) in {}, {}\n", count(plan.trained_parameters),
                                 count(plan.parameters), r.trains_all ? "all" : "attention", type,
                                 r.teacher ? "with a teacher" : "without a teacher");
  text += fmt::format("{} tokens in {} steps of {} x {}, {} process{}, micro-batch {}{}\n\n", count(r.tokens),
                      plan.steps(), r.batch, r.window, r.world, r.world == 1 ? "" : "es", r.micro_batch,
                      r.recompute ? ", layers run again for gradients" : "");
  return text;
}

std::string memory_table(const TrainingPlan& plan) {
  struct Row {
    const char* name;
    int64_t TrainingMemory::*part;
  };
  static const std::vector<Row> rows = {{"frozen weights", &TrainingMemory::frozen_weights},
                                        {"teacher's own weights", &TrainingMemory::teacher_weights},
                                        {"trained weights", &TrainingMemory::trained_weights},
                                        {"master weights", &TrainingMemory::master_weights},
                                        {"moments", &TrainingMemory::moments},
                                        {"gradients", &TrainingMemory::gradients},
                                        {"activations", &TrainingMemory::activations},
                                        {"loss, or", &TrainingMemory::loss},
                                        {"a layer's passes", &TrainingMemory::layer_passes},
                                        {"communication", &TrainingMemory::communication},
                                        {"program", &TrainingMemory::program}};
  // One process has nothing to share.
  const size_t levels = plan.request.world > 1 ? kZeroLevels : 1;
  std::vector<std::vector<std::string>> table = {{"memory of one process"}};
  for (size_t level = 0; level < levels; ++level)
    table[0].push_back(plan.request.world > 1 ? fmt::format("ZeRO {}", level) : "");
  for (const Row& row : rows) {
    table.push_back({row.name});
    for (size_t level = 0; level < levels; ++level) table.back().push_back(bytes(plan.memory[level].*row.part));
  }
  table.push_back({"at its worst moment"});
  for (size_t level = 0; level < levels; ++level) table.back().push_back(bytes(plan.memory[level].total()));
  return format_table(table);
}

std::string fit_text(const TrainingPlan& plan, const DeviceLimits& device) {
  const auto level = smallest_zero_level(plan, device.memory_bytes);
  if (!level) {
    return fmt::format("Does not fit into {}; it would {}.\n", bytes(device.memory_bytes),
                       way_to_fit(plan, device.memory_bytes));
  }
  if (plan.request.world == 1) return fmt::format("Fits into {}.\n", bytes(device.memory_bytes));
  return fmt::format("Fits into {} with --zero {}.\n", bytes(device.memory_bytes), *level);
}

std::string duration(double seconds) {
  if (seconds < 90) return fmt::format("{:.0f} s", std::max(seconds, 1.0));
  if (seconds < 5400) return fmt::format("{:.0f} min", seconds / 60);
  return seconds < 100 * 3600.0 ? fmt::format("{:.1f} h", seconds / 3600) : fmt::format("{:.1f} days", seconds / 86400);
}

std::string time_text(const TrainingPlan& plan, const DeviceLimits& device) {
  const TrainingFlops& flops = plan.flops;
  std::string text = fmt::format("{:.3g} GFLOP per token: forward {:.0f} %, backward {:.0f} %, ", flops.total() / 1e9,
                                 100 * flops.forward / flops.total(), 100 * flops.backward / flops.total());
  if (flops.recomputation > 0)
    text += fmt::format("layers again {:.0f} %, ", 100 * flops.recomputation / flops.total());
  if (flops.teacher > 0) text += fmt::format("teacher {:.0f} %, ", 100 * flops.teacher / flops.total());
  text += fmt::format("loss {:.0f} %.\n", 100 * flops.loss / flops.total());
  if (device.flops <= 0) return text + "Give --device-flops for the time.\n";
  const double speed = planned_tokens_per_second(plan, device);
  return text + fmt::format("At {:.3g} TFLOP/s of each process {} tokens/s: {}.\n", device.flops / 1e12,
                            speed < 1000 ? fmt::format("{:.3g}", speed) : count(static_cast<int64_t>(speed)),
                            duration(static_cast<double>(plan.request.tokens) / speed));
}

}  // namespace

std::string training_plan_text(const TrainingPlan& plan, const DeviceLimits& device) {
  return heading(plan) + memory_table(plan) + "\n" + fit_text(plan, device) + time_text(plan, device);
}

}  // namespace cinch
