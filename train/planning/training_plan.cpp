#include "train/planning/training_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "core/errors.h"
#include "model/model_family.h"
#include "train/planning/activation_bytes.h"
#include "train/planning/loss_bytes.h"

namespace cinch {
namespace {

constexpr int64_t kAlignment = 128;                 // elements of a share, of flat buffers
constexpr int64_t kHostBytes = int64_t{220} << 20;  // program, LibTorch and its thread pools
constexpr int64_t kDeviceBytes = int64_t{1} << 30;  // CUDA context, libraries' workspaces, what the allocator rounds up
constexpr int64_t kMostProcesses = 1024;            // that a way out proposes

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

/// Numbers of one unit: the embedding, a layer, or the final norm with a head of its own.
struct Unit {
  int64_t trained = 0, frozen = 0, teacher = 0;
  double trained_matrices = 0, matrices = 0;  // of the student, numbers that tokens are multiplied with
};

size_t unit_of(const ModelFamily& family, const ModelConfig& config, const WeightSpec& spec) {
  if (spec.layer >= 0) return static_cast<size_t>(1 + spec.layer);
  return spec.name == family.embedding_name() ? 0 : static_cast<size_t>(config.n_layers + 1);
}

class Planner {
 public:
  explicit Planner(const TrainingPlanRequest& request) : request_(request) {
    request_.check();
    const ModelConfig& config = request_.student;
    const ModelFamily& family = model_family(config.family);
    units_.resize(static_cast<size_t>(config.n_layers + 2));
    std::map<std::string, std::vector<int64_t>> frozen;
    for (const WeightSpec& spec : family.weights(config)) {
      Unit& unit = units_[unit_of(family, config, spec)];
      const bool trained = request_.trains_all || spec.attention;
      const int64_t count = elements(spec.shape);
      (trained ? unit.trained : unit.frozen) += count;
      if (!trained) frozen[spec.name] = spec.shape;
      if (spec.layer < 0 || spec.shape.size() < 2) continue;
      unit.matrices += static_cast<double>(count);
      if (trained) unit.trained_matrices += static_cast<double>(count);
    }
    if (request_.teacher) read_teacher(frozen);
    shape_ = {.samples = request_.micro_batch,
              .window = request_.window,
              .compute_bytes = request_.compute_bytes,
              .work_bytes = request_.compute_bytes == 8 ? 8 : 4,
              .trains_trunk = request_.trains_all,
              .on_cpu = request_.on_cpu};
  }

  TrainingPlan plan() const {
    TrainingPlan plan{.request = request_};
    for (const Unit& unit : units_) {
      plan.parameters += unit.trained + unit.frozen;
      plan.trained_parameters += unit.trained;
      plan.teacher_parameters += unit.teacher;
    }
    for (int level = 0; level < kZeroLevels; ++level) plan.memory[static_cast<size_t>(level)] = memory(level);
    plan.flops = flops();
    return plan;
  }

 private:
  void read_teacher(const std::map<std::string, std::vector<int64_t>>& frozen) {
    const ModelConfig &teacher = *request_.teacher, &student = request_.student;
    if (teacher.vocab_size != student.vocab_size || teacher.n_layers != student.n_layers) {
      throw UnsupportedError(fmt::format("the teacher has {} layers and a vocabulary of {}, the student {} and {}",
                                         teacher.n_layers, teacher.vocab_size, student.n_layers, student.vocab_size),
                             "take the model that the student was converted from");
    }
    const ModelFamily& family = model_family(teacher.family);
    for (const WeightSpec& spec : family.weights(teacher)) {
      const auto same = frozen.find(spec.name);
      if (same != frozen.end() && same->second == spec.shape) continue;
      units_[unit_of(family, teacher, spec)].teacher += elements(spec.shape);
    }
  }

  int64_t padded(int64_t count) const {
    const int64_t unit = kAlignment * request_.world;
    return (count + unit - 1) / unit * unit;
  }

  TrainingMemory memory(int level) const {
    const int64_t s = request_.compute_bytes, m = shape_.work_bytes, world = request_.world;
    const bool shares_weights = level >= 3, shares_frozen = shares_weights && world > 1;
    TrainingMemory memory;
    for (const Unit& unit : units_) {
      const int64_t whole = padded(unit.trained), share = whole / world, state = level >= 1 ? share : whole;
      memory.frozen_weights += (shares_frozen ? padded(unit.frozen) / world : unit.frozen) * s;
      memory.teacher_weights += (shares_frozen ? padded(unit.teacher) / world : unit.teacher) * s;
      memory.trained_weights += (shares_weights ? share : whole) * s;
      memory.master_weights += s == m ? 0 : state * m;
      memory.moments += 2 * state * m;
      // Summed over the processes into a share of its own.
      memory.gradients += level >= 2 ? share * m : level == 1 ? (whole + share) * m : whole * m;
    }
    memory.activations = activations();
    memory.loss = loss();
    memory.layer_passes = layer_passes();
    memory.communication = communication(level);
    memory.program = request_.on_cpu ? kHostBytes : kDeviceBytes;
    return memory;
  }

  int64_t states() const { return shape_.tokens() * request_.student.hidden_size * request_.compute_bytes; }

  LayerActivations layer(int64_t i) const { return layer_activations(request_.student, i, shape_); }

  int64_t activations() const {
    int64_t kept = states();  // the last layer's output
    for (int64_t i = 0; i < request_.student.n_layers; ++i) kept += request_.recompute ? states() : layer(i).kept;
    return kept;
  }

  int64_t layer_passes() const {
    int64_t most = 0;
    for (int64_t i = 0; i < request_.student.n_layers; ++i) {
      const LayerActivations student = layer(i);
      // The gradient that comes in; the weights' own lie apart until they are added to the unit's, when most of what
      // was kept is gone.
      const int64_t weights = units_[static_cast<size_t>(1 + i)].trained * request_.compute_bytes;
      const int64_t again = request_.recompute ? student.kept : 0;
      most = std::max(most, states() + std::max(again + student.backward, weights));
      if (!request_.teacher) continue;
      const int64_t width = request_.teacher->hidden_size * shape_.tokens() * request_.compute_bytes;
      most = std::max(most, 2 * width + layer_activations(*request_.teacher, i, shape_).forward);
    }
    return most;
  }

  int64_t loss() const {
    const ModelConfig& config = request_.student;
    const int64_t tokens = shape_.tokens(), s = request_.compute_bytes, w = shape_.work_bytes;
    const int64_t states_of_teacher =
        request_.teacher ? 2 * tokens * request_.teacher->hidden_size * s : 0;  // before and after its norm
    // Final norm: its input where that is made wide, its result and, where trained, that before its weight.
    const int64_t norm = tokens * config.hidden_size * ((s == w ? 0 : w) + s * (request_.trains_all ? 2 : 1));
    return states_of_teacher + norm +
           loss_bytes({.tokens = tokens,
                       .vocabulary = config.vocab_size,
                       .hidden_size = config.hidden_size,
                       .compute_bytes = s,
                       .teacher = request_.teacher.has_value(),
                       .trains_head = request_.trains_all,
                       .on_cpu = request_.on_cpu,
                       .chunk_bytes = request_.chunk_bytes});
  }

  int64_t communication(int level) const {
    const int64_t s = request_.compute_bytes, m = shape_.work_bytes, world = request_.world;
    int64_t reduced = 0, gathered = 0;
    if (level >= 2) {
      // The unit whose backward pass runs, and the one before it on its way.
      for (const Unit& unit : units_) {
        const int64_t whole = padded(unit.trained);
        reduced = std::max(reduced, (world > 1 ? 2 : 1) * (whole + whole / world) * m);
      }
    }
    if (level >= 3) {
      std::vector<int64_t> sizes;
      for (const Unit& unit : units_) {
        sizes.push_back((padded(unit.trained) + (world > 1 ? padded(unit.frozen) + padded(unit.teacher) : 0)) * s);
      }
      for (size_t i = 0; i + 1 < sizes.size(); ++i) gathered = std::max(gathered, sizes[i] + sizes[i + 1]);
      const bool tied =
          request_.student.tie_word_embeddings || (request_.teacher && request_.teacher->tie_word_embeddings);
      if (tied) gathered += sizes[0];  // until the loss is known
    }
    return reduced + gathered;
  }

  /// Scores and sums of values of one layer, per token.
  double attention_flops(const AttentionSpec& spec) const {
    const auto t = static_cast<double>(request_.window);
    const double w = spec.window > 0 ? std::min(t, static_cast<double>(spec.window)) : t;
    const double pairs = w - w * (w - 1) / (2 * t);  // keys that a query sees, on average
    auto width = static_cast<double>(2 * spec.head_dim);
    if (spec.kind == AttentionKind::latent) {
      width = static_cast<double>(std::min(spec.qk_nope_head_dim + spec.qk_rope_head_dim + spec.v_head_dim,
                                           2 * spec.kv_lora_rank + spec.qk_rope_head_dim));
    }
    return 2 * static_cast<double>(spec.n_heads) * pairs * width;
  }

  TrainingFlops flops() const {
    TrainingFlops flops;
    for (const Unit& unit : units_) {
      flops.forward += 2 * unit.matrices;
      flops.backward += 2 * unit.matrices + 2 * unit.trained_matrices;
    }
    for (const AttentionSpec& spec : request_.student.layers) {
      const double attention = attention_flops(spec);
      flops.forward += attention;
      flops.backward += 2.5 * attention;  // scores again, and four products
    }
    if (request_.recompute) flops.recomputation = flops.forward;
    const auto head = 2 * static_cast<double>(request_.student.vocab_size * request_.student.hidden_size);
    flops.loss = head * (request_.trains_all ? 3 : 2);
    if (request_.teacher) {
      const ModelConfig& teacher = *request_.teacher;
      for (const WeightSpec& spec : model_family(teacher.family).weights(teacher)) {
        if (spec.layer >= 0 && spec.shape.size() > 1) flops.teacher += 2 * static_cast<double>(elements(spec.shape));
      }
      for (const AttentionSpec& spec : teacher.layers) flops.teacher += attention_flops(spec);
      flops.loss += 2 * static_cast<double>(teacher.vocab_size * teacher.hidden_size);
    }
    return flops;
  }

  TrainingPlanRequest request_;
  std::vector<Unit> units_;
  ActivationShape shape_;
};

std::string gibibytes(int64_t bytes) {
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / static_cast<double>(int64_t{1} << 30));
}

}  // namespace

void TrainingPlanRequest::check() const {
  const auto positive = [](const char* flag, int64_t value) {
    if (value <= 0) throw UsageError(fmt::format("{} {}: expected a number above 0", flag, value));
  };
  positive("--window", window);
  positive("--micro-batch", micro_batch);
  positive("--batch", batch);
  positive("--tokens", tokens);
  positive("--world", world);
  if (batch % (micro_batch * world) != 0) {
    throw UsageError(fmt::format("--batch {} does not divide into micro-batches of {} on {} process{}", batch,
                                 micro_batch, world, world == 1 ? "" : "es"),
                     fmt::format("a multiple of {} does", micro_batch * world));
  }
  if (window > student.max_position_embeddings) {
    throw UsageError(fmt::format("--window {}: the student's context is {}", window, student.max_position_embeddings));
  }
}

int64_t TrainingMemory::total() const {
  return frozen_weights + teacher_weights + trained_weights + master_weights + moments + gradients + activations +
         std::max(loss, layer_passes) + communication + program;
}

Json TrainingMemory::to_json() const {
  return {{"frozen_weights_bytes", frozen_weights},
          {"teacher_weights_bytes", teacher_weights},
          {"trained_weights_bytes", trained_weights},
          {"master_weights_bytes", master_weights},
          {"moments_bytes", moments},
          {"gradients_bytes", gradients},
          {"activations_bytes", activations},
          {"loss_bytes", loss},
          {"layer_passes_bytes", layer_passes},
          {"communication_bytes", communication},
          {"program_bytes", program},
          {"total_bytes", total()}};
}

Json TrainingFlops::to_json() const {
  return {{"forward", forward}, {"backward", backward}, {"recomputation", recomputation},
          {"teacher", teacher}, {"loss", loss},         {"total", total()}};
}

int64_t TrainingPlan::steps() const {
  const int64_t step = request.batch * request.window;
  return std::max<int64_t>(1, request.tokens / step);
}

TrainingPlan plan_training(const TrainingPlanRequest& request) { return Planner(request).plan(); }

std::optional<int> smallest_zero_level(const TrainingPlan& plan, int64_t memory_bytes) {
  for (int level = 0; level < kZeroLevels; ++level) {
    if (plan.memory[static_cast<size_t>(level)].total() <= memory_bytes) return level;
  }
  return std::nullopt;
}

namespace {

/// The first of a row of changes, each added to the ones before, that fits; in the order of what they cost.
class WayOut {
 public:
  WayOut(const TrainingPlan& plan, int64_t memory_bytes) : plan_(plan), request_(plan.request), memory_(memory_bytes) {}

  std::string find() {
    if (fits_with_micro_batches({})) return answer_;
    std::vector<std::string> changes;
    const auto fits_too = [&](const std::string& change) {
      changes.push_back(change);
      return fits(changes) || fits_with_micro_batches(changes);
    };
    if (!request_.recompute) {
      request_.recompute = true;
      if (fits_too("--recompute")) return answer_;
    }
    if (request_.compute_bytes > 2) {
      request_.compute_bytes = 2;
      if (fits_too("bf16")) return answer_;
    }
    if (request_.trains_all) {
      request_.trains_all = false;
      if (fits_too("--trainable attention")) return answer_;
    }
    request_.micro_batch = 1;
    changes.push_back("--micro-batch 1");
    while (2 * request_.world <= kMostProcesses) {
      request_.world *= 2;
      request_.batch = (request_.batch + request_.world - 1) / request_.world * request_.world;
      std::vector<std::string> more = changes;
      more.push_back(fmt::format("{} processes", request_.world));
      if (fits(more)) return answer_;
    }
    return fmt::format("with a shorter --window, or {} at least for each of {} processes", gibibytes(least_),
                       request_.world);
  }

 private:
  bool fits(std::vector<std::string> changes) {
    const TrainingPlan plan = plan_training(request_);
    least_ = plan.memory[0].total();
    for (const TrainingMemory& memory : plan.memory) least_ = std::min(least_, memory.total());
    const auto level = smallest_zero_level(plan, memory_);
    if (!level) return false;
    if (request_.world > 1) changes.push_back(fmt::format("--zero {}", *level));
    answer_ = fmt::format("with {}: {}", fmt::join(changes, ", "),
                          gibibytes(plan.memory[static_cast<size_t>(*level)].total()));
    return true;
  }

  bool fits_with_micro_batches(std::vector<std::string> changes) {
    for (int64_t samples = plan_.request.micro_batch / 2; samples > 0; samples /= 2) {
      if (plan_.request.micro_batch % samples != 0) continue;
      request_.micro_batch = samples;
      std::vector<std::string> more = changes;
      more.push_back(fmt::format("--micro-batch {}", samples));
      if (fits(more)) return true;
    }
    request_.micro_batch = plan_.request.micro_batch;
    return false;
  }

  const TrainingPlan& plan_;
  TrainingPlanRequest request_;
  int64_t memory_, least_ = 0;
  std::string answer_;
};

}  // namespace

std::string way_to_fit(const TrainingPlan& plan, int64_t memory_bytes) { return WayOut(plan, memory_bytes).find(); }

double planned_tokens_per_second(const TrainingPlan& plan, const DeviceLimits& device) {
  return device.flops * static_cast<double>(plan.request.world) / plan.flops.total();
}

Json training_plan_json(const TrainingPlan& plan, const DeviceLimits& device) {
  const TrainingPlanRequest& request = plan.request;
  Json levels = Json::array();
  for (const TrainingMemory& memory : plan.memory) levels.push_back(memory.to_json());
  Json json = {{"parameters", plan.parameters},
               {"trained_parameters", plan.trained_parameters},
               {"teacher_parameters", plan.teacher_parameters},
               {"world", request.world},
               {"window", request.window},
               {"batch", request.batch},
               {"micro_batch", request.micro_batch},
               {"tokens", request.tokens},
               {"steps", plan.steps()},
               {"recompute", request.recompute},
               {"memory", levels},
               {"flops_per_token", plan.flops.to_json()},
               {"device_memory_bytes", device.memory_bytes},
               {"device_flops", nullptr},
               {"zero", nullptr},
               {"way_out", nullptr},
               {"tokens_per_second", nullptr},
               {"seconds_estimate", nullptr}};
  if (const auto level = smallest_zero_level(plan, device.memory_bytes)) {
    json["zero"] = *level;
  } else {
    json["way_out"] = way_to_fit(plan, device.memory_bytes);
  }
  if (device.flops > 0) {
    const double speed = planned_tokens_per_second(plan, device);
    json["device_flops"] = device.flops;
    json["tokens_per_second"] = speed;
    json["seconds_estimate"] = static_cast<double>(request.tokens) / speed;
  }
  return json;
}

}  // namespace cinch
