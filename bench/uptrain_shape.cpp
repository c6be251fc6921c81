// Speed and memory of uptraining a model of some shape: a config.json, random weights, its conversion as the student.
// Neither depends on what the weights are.
//
//   uptrain_shape CONFIG.json TARGET [--window 4096] [--micro-batch 1] [--batch N] [--steps 5] [--recompute]
//                 [--trainable all] [--ce] [--dtype bf16|f32] [--device cuda|cpu] [--documents TOKENS] [--chunk MIB]
//                 [--trace FILE]
//
// TARGET: mqa, gqa:N, or mla:R+D. --ce: next-token loss without a teacher, else KL to the model before conversion.
// --trace: the last step's operations and kernels, for chrome://tracing. --documents: length of those that samples are
// packed from. Prints, for one process: tokens per second (median of the steps after the first two), arithmetic per
// token as planned and what that makes of the speed of matrix products measured in the same run, the memory that
// tensors took beside what the plan says.
#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "convert/converter.h"
#include "core/errors.h"
#include "core/plugin.h"
#include "model/config_source.h"
#include "train/planning/device_speed.h"
#include "train/planning/loss_bytes.h"
#include "train/planning/training_plan.h"
#include "train/trainer.h"

using namespace cinch;

namespace {

/// Every tensor is cut from one block of small random numbers; norms' weights are near 1.
class RandomTensors : public TensorSource {
 public:
  explicit RandomTensors(const std::vector<WeightSpec>& weights) {
    size_t largest = 0;
    for (const WeightSpec& weight : weights) {
      tensors_.push_back({weight.name, Dtype::kBF16, weight.shape, {}});
      largest = std::max(largest, static_cast<size_t>(tensors_.back().bytes()));
    }
    build_index();
    at::manual_seed(1);
    const at::Tensor piece = (at::randn({1 << 20}) * 0.02).to(at::kBFloat16);
    const auto size = static_cast<size_t>(piece.nbytes());
    matrix_ = std::make_shared<std::vector<std::byte>>(largest);
    for (size_t at = 0; at < largest; at += size)
      std::memcpy(matrix_->data() + at, piece.const_data_ptr(), std::min(size, largest - at));
    const at::Tensor ones = at::ones({1 << 20}).to(at::kBFloat16);
    norm_ = std::make_shared<std::vector<std::byte>>(size);
    std::memcpy(norm_->data(), ones.const_data_ptr(), size);
  }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  TensorData read(const std::string& name) const override {
    const TensorInfo& info = *find(name);
    const auto& block = info.shape.size() == 1 ? norm_ : matrix_;
    return {info, {block->data(), static_cast<size_t>(info.bytes())}, block};
  }
  TensorData read_rows(const std::string& name, int64_t, int64_t) const override { return read(name); }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  std::vector<std::filesystem::path> files() const override { return {}; }
  std::string format() const override { return "random"; }

 private:
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
  std::shared_ptr<std::vector<std::byte>> matrix_, norm_;
};

class RandomModel : public ModelSource {
 public:
  explicit RandomModel(ModelConfig config)
      : config_(std::move(config)), family_(&model_family(config_.family)), tensors_(family_->weights(config_)) {}
  const std::filesystem::path& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  const ModelFamily& family() const override { return *family_; }
  const TensorSource& tensors() const override { return tensors_; }
  std::unique_ptr<Tokenizer> tokenizer() const override { return nullptr; }
  std::optional<GgufVocabulary> vocabulary() const override { return std::nullopt; }
  std::map<std::string, std::string> side_files() const override { return {}; }
  std::string quality_note() const override { return {}; }

 private:
  std::filesystem::path path_ = "random";
  ModelConfig config_;
  const ModelFamily* family_;
  RandomTensors tensors_;
};

struct Setting {
  std::string config, target, dtype = "bf16", device = "cuda", trace;
  int64_t window = 4096, micro_batch = 1, batch = 0, steps = 5, documents = 0, chunk = 0;
  bool recompute = false, trains_all = false, next_token = false;
};

ConversionRecipe recipe_of(const std::string& target) {
  ConversionRecipe recipe;
  if (!target.starts_with("mla:")) {
    parse_target(target, recipe);
    return recipe;
  }
  const size_t plus = target.find('+');
  if (plus == std::string::npos) throw UsageError(target + ": expected mla:R+D");
  recipe.target = TargetKind::mla;
  recipe.method = "weighted";
  recipe.rank = std::stoll(target.substr(4, plus - 4));
  recipe.rope_dim = std::stoll(target.substr(plus + 1));
  return recipe;
}

void start_trace(bool cuda) {
  using namespace torch::autograd::profiler;
  std::set<ActivityType> activities = {ActivityType::CPU};
  if (cuda) activities.insert(ActivityType::CUDA);
  const ProfilerConfig config(ProfilerState::KINETO);
  prepareProfiler(config, activities);
  enableProfiler(config, activities);
}

double gigabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

void measure(const Setting& setting) {
  const bool cuda = setting.device == "cuda";
  if (cuda) load_cuda_plugin();
  const at::Device device(cuda ? at::kCUDA : at::kCPU, 0);
  const at::ScalarType type = setting.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
  const double matrix_flops = matrix_product_flops(device, type);
  const auto source = open_config(setting.config);
  const ConversionPlan conversion =
      plan_conversion(*source, recipe_of(setting.target), {.output = "nowhere", .format = "native", .dtype = {}});

  TrainingPlanRequest request{.student = conversion.target, .teacher = conversion.source};
  if (setting.next_token) request.teacher.reset();
  request.trains_all = setting.trains_all;
  request.compute_bytes = type == at::kBFloat16 ? 2 : 4;
  request.window = setting.window;
  request.micro_batch = setting.micro_batch;
  request.batch = std::max(setting.batch, setting.micro_batch);
  request.tokens = setting.steps * request.batch * request.window;
  request.recompute = setting.recompute;
  request.on_cpu = !cuda;
  request.chunk_bytes = setting.chunk > 0 ? setting.chunk << 20 : loss_chunk_bytes(request.on_cpu);
  const TrainingPlan plan = plan_training(request);

  TrainRecipe recipe{.stages = {{.loss = setting.next_token ? LossWeights{1, 0} : LossWeights{0, 1},
                                 .schedule = {.steps = setting.steps}}},
                     .batch = request.batch,
                     .micro_batch = request.micro_batch,
                     .chunk_bytes = request.chunk_bytes};
  const auto count = static_cast<size_t>((setting.steps * request.batch + 1) * setting.window + 1);
  std::vector<int64_t> ids(count), documents;
  for (size_t i = 0; i < count; ++i)
    ids[i] = static_cast<int64_t>((i * 2654435761U >> 7) % static_cast<size_t>(conversion.target.vocab_size));
  for (int64_t at = 0; setting.documents > 0 && at < static_cast<int64_t>(count); at += setting.documents)
    documents.push_back(at);

  const int64_t bytes_before =
      cuda ? c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0).allocated_bytes[0].current : 0;
  if (cuda) c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(0);
  TrainedModel model(std::make_shared<RandomModel>(conversion.target),
                     {.trainable = setting.trains_all ? Trainable::all : Trainable::attention,
                      .compute = type,
                      .device = device,
                      .recompute = setting.recompute});
  std::optional<Teacher> teacher;
  if (!setting.next_token) teacher.emplace(std::make_shared<RandomModel>(conversion.source), model);
  const TokenSamples samples(std::move(ids), setting.window, 1, std::move(documents));
  Trainer trainer(model, teacher ? &*teacher : nullptr, samples, recipe);
  std::vector<double> seconds;
  while (!trainer.done()) {
    const bool traced = !setting.trace.empty() && trainer.steps_done() + 1 == setting.steps;
    if (traced) start_trace(cuda);
    const auto start = std::chrono::steady_clock::now();
    const StepReport report = trainer.step();
    if (cuda) at::accelerator::synchronizeDevice(0);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    if (traced) torch::autograd::profiler::disableProfiler()->save(setting.trace);
    if (!std::isfinite(report.loss)) throw Error("the loss is no number");
  }
  std::sort(seconds.begin() + 2, seconds.end());
  const double median = seconds[2 + (seconds.size() - 2) / 2];
  const double tokens = static_cast<double>(request.batch * request.window) / median;
  const double flops = tokens * plan.flops.total();
  std::cout << fmt::format(
      "{} -> {}, {}, {}, {} trained, window {}, batch {} of {} at once{}{}: {:.0f} tokens/s, {:.2f} GFLOP a token, "
      "{:.0f} "
      "TFLOP/s = {:.2f} of matrix products ({:.0f})",
      conversion.source.architecture, setting.target, setting.next_token ? "next token" : "KL", setting.dtype,
      setting.trains_all ? "all" : "attention", setting.window, request.batch, request.micro_batch,
      setting.recompute ? ", recomputed" : "",
      setting.documents > 0 ? fmt::format(", documents of {}", setting.documents) : "", tokens,
      plan.flops.total() / 1e9, flops / 1e12, flops / matrix_flops, matrix_flops / 1e12);
  if (cuda) {
    const auto bytes = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0);
    const TrainingMemory& memory = plan.memory[0];
    std::cout << fmt::format("; memory of tensors {:.1f} GB ({:.1f} with what the allocator keeps), planned {:.1f}",
                             gigabytes(bytes.allocated_bytes[0].peak - bytes_before),
                             gigabytes(bytes.reserved_bytes[0].peak), gigabytes(memory.total() - memory.program));
  }
  std::cout << std::endl;
}

Setting parse(const std::vector<std::string>& arguments) {
  Setting setting;
  std::vector<std::string> places;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    const auto value = [&] {
      if (i + 1 == arguments.size()) throw UsageError(name + " needs a value");
      return arguments[++i];
    };
    if (name == "--window") {
      setting.window = std::stoll(value());
    } else if (name == "--micro-batch") {
      setting.micro_batch = std::stoll(value());
    } else if (name == "--batch") {
      setting.batch = std::stoll(value());
    } else if (name == "--steps") {
      setting.steps = std::max<int64_t>(3, std::stoll(value()));
    } else if (name == "--documents") {
      setting.documents = std::stoll(value());
    } else if (name == "--chunk") {
      setting.chunk = std::stoll(value());
    } else if (name == "--trace") {
      setting.trace = value();
    } else if (name == "--recompute") {
      setting.recompute = true;
    } else if (name == "--ce") {
      setting.next_token = true;
    } else if (name == "--trainable") {
      setting.trains_all = value() == "all";
    } else if (name == "--dtype") {
      setting.dtype = value();
    } else if (name == "--device") {
      setting.device = value();
    } else if (name.starts_with("--")) {
      throw UsageError(name + ": unknown");
    } else {
      places.push_back(name);
    }
  }
  if (places.size() != 2) throw UsageError("uptrain_shape CONFIG.json mqa|gqa:N|mla:R+D [OPTIONS]");
  setting.config = places[0];
  setting.target = places[1];
  return setting;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    measure(parse({argv + 1, argv + argc}));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
