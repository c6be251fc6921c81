#include "train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/errors.h"

namespace cinch {
namespace {

/// To the device from memory that it copies by itself: else the host would wait for all that the device has to do.
at::Tensor sent(const at::Tensor& x, at::Device device) {
  return device.is_cuda() ? x.pin_memory().to(device, /*non_blocking=*/true) : x.to(device);
}

constexpr double kInitialSize = 0.02;  // of weights that are all zero: what models begin with (initializer_range)

}  // namespace

Json TrainStage::to_json() const {
  return {{"local", local},
          {"cross_entropy", loss.cross_entropy},
          {"distillation", loss.distillation},
          {"learning_rates", learning_rates},
          {"relative_rates", relative_rates},
          {"schedule", schedule.kind},
          {"steps", schedule.steps},
          {"warmup_steps", schedule.warmup_steps},
          {"decay_share", schedule.decay_share},
          {"floor", schedule.floor}};
}

int64_t TrainRecipe::steps() const {
  int64_t sum = 0;
  for (const TrainStage& stage : stages) sum += stage.schedule.steps;
  return sum;
}

void TrainRecipe::check() const {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw UsageError(what);
  };
  require(!stages.empty(), "a training without stages does nothing");
  for (const TrainStage& stage : stages) {
    stage.schedule.check();
    const LossWeights& loss = stage.loss;
    require(
        stage.local ||
            (loss.cross_entropy >= 0 && loss.distillation >= 0 && loss.cross_entropy + loss.distillation > 0),
        fmt::format("loss weights {} and {}: expected at least one above 0", loss.cross_entropy, loss.distillation));
    for (const double rate : stage.learning_rates)
      require(std::isfinite(rate) && rate >= 0, fmt::format("a learning rate of {}: expected 0 or more", rate));
  }
  require(batch > 0 && micro_batch > 0, fmt::format("batches of {} and {}: expected at least 1", batch, micro_batch));
  require(weight_decay >= 0 && clip >= 0, "weight decay and clip are not negative");
}

Json TrainRecipe::to_json() const {
  Json list = Json::array();
  for (const TrainStage& stage : stages) list.push_back(stage.to_json());
  return {{"stages", list},   {"weight_decay", weight_decay},
          {"clip", clip},     {"betas", {adamw.beta1, adamw.beta2}},
          {"eps", adamw.eps}, {"guard", {guard.deviations, guard.window, guard.fewest, guard.most_refused}},
          {"batch", batch}};
}

Trainer::Trainer(TrainedModel& model, const Teacher* teacher, const TokenSamples& samples, const TrainRecipe& recipe)
    : model_(model), teacher_(teacher), samples_(samples), recipe_(recipe), guard_(recipe.guard) {
  recipe_.check();
  for (const TrainStage& stage : recipe_.stages) {
    if ((stage.local || stage.loss.distillation > 0) && teacher == nullptr)
      throw UsageError("distillation needs a teacher");
  }
  make_optimizer();
}

RateGroup Trainer::rate_group(const Parameter& parameter) const {
  if (!parameter.attention) return RateGroup::trunk;
  return teacher_ != nullptr && teacher_->has(parameter.name, parameter.shape) ? RateGroup::kept : RateGroup::fresh;
}

double Trainer::scale_of(const Parameter& parameter) const {
  // From the file: this process may hold only a part, and a resumed run has other values by now.
  const at::Tensor value = model_.source().tensor(parameter.name, at::kFloat);
  const double mean_square = value.square().mean().item<double>();
  model_.source().tensors().release(parameter.name);
  return mean_square > 0 ? std::sqrt(mean_square) : kInitialSize;
}

void Trainer::make_optimizer() {
  const bool relative = std::any_of(recipe_.stages.begin(), recipe_.stages.end(),
                                    [](const TrainStage& stage) { return stage.relative_rates; });
  std::vector<AdamWPiece> pieces;
  for (const Parameter& parameter : model_.parameters()) {
    WeightUnit& unit = model_.units()[parameter.unit];
    const FlatLayout::Entry& entry = unit.layout().entries()[parameter.entry];
    const int64_t first = std::max(entry.first, unit.first());
    const int64_t last = std::min(entry.first + entry.count, unit.first() + unit.master().size(0));
    if (first >= last) continue;
    const auto part = [&](const at::Tensor& whole) { return whole.narrow(0, first - unit.first(), last - first); };
    const bool matrix = parameter.shape.size() > 1;
    pieces.push_back({.value = part(unit.master()),
                      .gradient = part(unit.gradient()),
                      .mean = part(unit.mean()),
                      .square = part(unit.square()),
                      .rate = static_cast<int>(rate_group(parameter)),
                      .scale = relative ? scale_of(parameter) : 1.0,
                      .weight_decay = matrix ? recipe_.weight_decay : 0.0});
  }
  optimizer_.emplace(std::move(pieces), recipe_.adamw);
}

Trainer::Place Trainer::place() const {
  Place place = {0, steps_done_};
  while (place.stage + 1 < recipe_.stages.size() && place.step >= recipe_.stages[place.stage].schedule.steps)
    place.step -= recipe_.stages[place.stage++].schedule.steps;
  return place;
}

at::Tensor Trainer::take_micro_batch(const TrainStage& stage, int64_t first, int64_t count, bool last) {
  // A process without samples of its own left takes part with one that does not count: the others wait for it.
  const bool counts = count > 0;
  const TokenSamples::Batch batch = samples_.batch(first, std::max<int64_t>(count, 1));
  const at::Device device = model_.options().device;
  const TrainedModel::Input input = {sent(batch.ids, device), batch.documents};
  if (stage.local) {
    const at::Tensor weights = at::full({batch.ids.size(0)}, counts ? 1.0 / static_cast<double>(recipe_.batch) : 0.0);
    const at::Tensor error = model_.accumulate_local(input, *teacher_, weights, last);
    return at::stack({error, at::zeros_like(error), at::zeros_like(error)});
  }
  at::Tensor losses;
  const at::Tensor targets = counts ? batch.targets : at::full_like(batch.targets, kIgnoredTarget);
  const auto loss_of = [&](const FinalStates& states) {
    LossInputs inputs{.hidden = states.hidden.flatten(0, 1),
                      .head = states.head,
                      .teacher_hidden = {},
                      .teacher_head = states.teacher_head,
                      .targets = sent(targets.flatten(), device)};
    if (states.teacher_hidden.defined()) inputs.teacher_hidden = states.teacher_hidden.flatten(0, 1);
    const LossValue loss = linear_cross_entropy_kd(inputs, {.weights = stage.loss,
                                                            .softcap = model_.config().final_logit_softcap,
                                                            .denominator = denominator_,
                                                            .chunk_bytes = recipe_.chunk_bytes});
    losses = at::stack({loss.total.detach().to(at::kDouble), loss.cross_entropy, loss.distillation});
    return loss.total;
  };
  model_.accumulate(input, stage.loss.distillation > 0 ? teacher_ : nullptr, loss_of, last);
  return losses;
}

double Trainer::clip_gradients() {
  // Where every process has all gradients, each knows the norm.
  std::vector<double> squares = {optimizer_->squared_norm().item<double>()};
  if (model_.options().zero.states()) model_.group()->sum(squares);
  const double norm = std::sqrt(squares[0]);
  if (recipe_.clip > 0 && norm > recipe_.clip)
    optimizer_->scale_gradients(at::scalar_tensor(recipe_.clip / (norm + 1e-6), at::kDouble));
  return norm;
}

StepReport Trainer::step() {
  const Place now = place();
  const TrainStage& stage = recipe_.stages[now.stage];
  if (now.step == 0) {  // another loss than before: what the stage before had tells nothing
    optimizer_->reset();
    guard_ = LossGuard(recipe_.guard);
  }
  for (WeightUnit& unit : model_.units()) unit.zero_gradient();

  StepReport report;
  report.stage = now.stage;
  const int64_t world = model_.group()->world(), rank = model_.group()->rank();
  const int64_t start = steps_done_ * recipe_.batch;
  denominator_ = std::max<int64_t>(1, samples_.targets(start, recipe_.batch));
  const int64_t first = recipe_.batch * rank / world, end = recipe_.batch * (rank + 1) / world;
  const int64_t most = (recipe_.batch + world - 1) / world;  // of any process
  const int64_t parts = (most + recipe_.micro_batch - 1) / recipe_.micro_batch;
  at::Tensor losses = at::zeros({3}, at::TensorOptions(at::kDouble).device(model_.options().device));
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = std::min(first + part * recipe_.micro_batch, end);
    const int64_t count = std::min(recipe_.micro_batch, end - from);
    losses += take_micro_batch(stage, start + std::min(from, recipe_.batch - 1), count, part + 1 == parts);
  }
  model_.finish_reductions();

  losses = losses.cpu();  // the one moment of the forward and backward passes when the host waits for the device
  std::vector<double> sums(losses.const_data_ptr<double>(), losses.const_data_ptr<double>() + losses.numel());
  model_.group()->sum(sums);
  report.loss = sums[0];
  (stage.local ? report.local : report.cross_entropy) = stage.local ? sums[0] : sums[1];
  report.distillation = sums[2];
  report.gradient_norm = clip_gradients();
  report.skipped = !guard_.accepts(report.loss, report.gradient_norm);
  const double factor = stage.schedule.factor(now.step);
  report.learning_rate = stage.learning_rates[0] * factor;
  if (!report.skipped) {
    std::vector<double> rates;
    for (const double rate : stage.learning_rates) rates.push_back(rate * factor);
    if (stage.local) rates[static_cast<size_t>(RateGroup::trunk)] = 0;  // it has no gradients there
    optimizer_->step(rates, stage.relative_rates);
    for (WeightUnit& unit : model_.units()) unit.start_update();
    for (WeightUnit& unit : model_.units()) unit.finish_update();
  }
  report.step = ++steps_done_;
  return report;
}

Json Trainer::identity() const {
  Json json = recipe_.to_json();
  json["data"] = samples_.digest();
  json["window"] = samples_.length();
  json["trainable"] = model_.options().trainable == Trainable::all ? "all" : "attention";
  json["compute"] = at::toString(model_.options().compute);
  return json;
}

std::vector<StateShare> Trainer::shares() {
  std::vector<StateShare> shares;
  for (WeightUnit& unit : model_.units()) {
    if (unit.empty()) continue;
    shares.push_back({unit.name() + ".master", unit.share_of(unit.master())});
    shares.push_back({unit.name() + ".mean", unit.share_of(unit.mean())});
    shares.push_back({unit.name() + ".square", unit.share_of(unit.square())});
  }
  return shares;
}

void Trainer::save(StateWriter& writer) {
  Json units = Json::object();
  for (const WeightUnit& unit : model_.units()) units[unit.name()] = unit.layout().size();
  writer.start(steps_done_, shares(),
               {{"identity", identity()},
                {"units", units},
                {"optimizer_steps", optimizer_->steps()},
                {"guard", guard_.to_json()}});
}

bool Trainer::resume(const std::filesystem::path& folder) {
  const std::optional<SavedState> saved = SavedState::latest(folder);
  if (!saved) return false;
  const JsonObject& manifest = saved->manifest();
  const Json recorded = manifest.object("identity").json(), own = identity();
  for (const auto& [key, value] : own.items()) {
    if (recorded.contains(key) && recorded.at(key) == value) continue;
    throw ConfigError(fmt::format("{}: its {} is {}, this run's is {}", manifest.origin(), key,
                                  recorded.contains(key) ? recorded.at(key).dump() : "missing", value.dump()),
                      "resume with the options of the run that wrote it, or start over in another folder");
  }
  const at::NoGradGuard no_grad;
  for (WeightUnit& unit : model_.units()) {
    if (unit.empty()) continue;
    at::Tensor master = unit.master();
    for (auto& [name, tensor] : {std::pair{"master", master}, {"mean", unit.mean()}, {"square", unit.square()}}) {
      tensor.copy_(saved->read(fmt::format("{}.{}", unit.name(), name), unit.layout().size(), unit.first(),
                               master.size(0), master.scalar_type()));
    }
    unit.start_update();
    unit.finish_update();
  }
  optimizer_->set_steps(manifest.integer("optimizer_steps"));
  guard_.restore(manifest.object("guard"));
  steps_done_ = saved->step();
  return true;
}

}  // namespace cinch
