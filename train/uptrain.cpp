#include "train/uptrain.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <numeric>

#include "core/errors.h"
#include "core/files.h"
#include "core/folder_lock.h"
#include "core/progress.h"
#include "train/event_file.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;
constexpr const char* kMetrics = "metrics.jsonl";
constexpr const char* kTraining = "training to this output";

struct Data {
  TokenDataset training, validation;
};

/// Every source fills its share of the tokens, again from its start where it is short; validation windows come from the
/// ends, which training does not see.
Data read_data(const ModelSource& model, const UptrainOptions& options, int64_t tokens) {
  if (options.data.empty()) throw UsageError("there is no text to train on", "give --data FILE[:WEIGHT]...");
  const auto tokenizer = model.tokenizer();
  const double total = std::accumulate(options.data.begin(), options.data.end(), 0.0,
                                       [](double sum, const CorpusSpec& spec) { return sum + spec.weight; });
  Data data;
  for (const CorpusSpec& spec : options.data) {
    if (!is_token_file(spec.path) && tokenizer == nullptr) {
      throw UsageError(fmt::format("{}: the student has no tokenizer for it", spec.path.string()),
                       "give token ids (.ids, .npy, .h5), or put tokenizer.json into its folder");
    }
    const TokenDataset found =
        is_token_file(spec.path) ? read_token_dataset(spec.path) : tokenize_documents(*tokenizer, spec.path);
    for (const int64_t id : found.ids) {
      if (id < 0 || id >= model.config().vocab_size) {
        throw ConfigError(fmt::format("{}: id {} is not in the student's vocabulary of {}", spec.path.string(), id,
                                      model.config().vocab_size),
                          "the text was tokenised for another model");
      }
    }
    const double share = spec.weight / total;
    const auto held = static_cast<int64_t>(std::llround(share * static_cast<double>(options.validation_windows)));
    const auto all = static_cast<int64_t>(found.ids.size()), kept = all - held * options.window;
    if (kept < options.window + 1) {
      throw UsageError(fmt::format("{}: {} tokens are too few for windows of {}, {} of them held out",
                                   spec.path.string(), all, options.window, held),
                       "give more text, a shorter --window, or fewer --validation-windows");
    }
    append_tokens(data.validation, found, static_cast<size_t>(kept), static_cast<size_t>(all));
    auto wanted = static_cast<int64_t>(std::llround(share * static_cast<double>(tokens)));
    for (; wanted > 0; wanted -= kept)
      append_tokens(data.training, found, 0, static_cast<size_t>(std::min(kept, wanted)));
  }
  // The last window's last target, which is of another document.
  for (TokenDataset* dataset : {&data.training, &data.validation}) append_tokens(*dataset, *dataset, 0, 1);
  return data;
}

HeldOutLosses measure(TrainedModel& model, const Teacher* teacher, const TokenSamples& samples,
                      const UptrainOptions& options) {
  const at::NoGradGuard no_grad;
  const int64_t count = samples.samples(), world = model.group()->world();
  std::vector<double> sums = {0, 0};
  const auto all = static_cast<double>(samples.targets(0, count));
  for (int64_t first = 0; first < count; first += world) {
    // Processes without a window of their own run the last one again: all take part in every exchange of weights.
    const int64_t own = first + model.group()->rank();
    const TokenSamples::Batch batch = samples.batch(std::min(own, count - 1), 1);
    const at::Device device = model.options().device;
    const FinalStates states = model.forward({batch.ids.to(device), batch.documents}, teacher);
    LossInputs inputs{.hidden = states.hidden[0],
                      .head = states.head,
                      .teacher_hidden = {},
                      .teacher_head = states.teacher_head,
                      .targets = batch.targets[0].to(device)};
    if (teacher != nullptr) inputs.teacher_hidden = states.teacher_hidden[0];
    const LossValue loss = linear_cross_entropy_kd(inputs, {.weights = {1.0, teacher != nullptr ? 1.0 : 0.0},
                                                            .softcap = model.config().final_logit_softcap,
                                                            .chunk_bytes = options.recipe.chunk_bytes});
    if (own >= count) continue;
    const double share = static_cast<double>(samples.targets(own, 1)) / all;
    sums[0] += loss.cross_entropy.item<double>() * share;
    sums[1] += loss.distillation.item<double>() * share;
  }
  model.group()->sum(sums);
  return {static_cast<int64_t>(all), sums[0], sums[1]};
}

/// One JSON object per step, and the same for TensorBoard; what lies beyond the step that a run resumes from is cut
/// off.
class Metrics {
 public:
  Metrics(const fs::path& folder, int64_t done) : events_(folder, done + 1) {
    const fs::path file = folder / kMetrics;
    std::string kept;
    if (done > 0 && fs::exists(file)) {
      std::ifstream stream(file);
      std::string line;
      for (int64_t i = 0; i < done && std::getline(stream, line); ++i) kept += line + "\n";
    }
    write_text(file, kept);
    stream_.open(file, std::ios::app);
  }
  void add(const StepReport& step, double tokens_per_second, int64_t tokens) {
    const Json line({{"step", step.step},
                     {"stage", step.stage},
                     {"tokens", tokens},
                     {"loss", step.loss},
                     {"cross_entropy", step.cross_entropy},
                     {"kl", step.distillation},
                     {"local", step.local},
                     {"gradient_norm", step.gradient_norm},
                     {"learning_rate", step.learning_rate},
                     {"skipped", step.skipped},
                     {"tokens_per_second", tokens_per_second}});
    stream_ << line.dump() << std::endl;
    events_.add(step.step, event_scalars(line));
  }

 private:
  EventFile events_;
  std::ofstream stream_;
};

std::string model_card(const ModelSource& student, const UptrainReport& report, const UptrainOptions& options) {
  const auto perplexity = [](double nats) { return fmt::format("{:.4g}", std::exp(nats)); };
  return fmt::format(
      "---\ntags:\n- cinch\n---\n# {}, uptrained\n\nTrained by cinch {} on {} tokens in {} steps ({} parameters, "
      "{}).\n\n| on {} held-out tokens | before | after |\n|---|---|---|\n| perplexity | {} | {} |\n| KL to the "
      "teacher "
      "(nats) | {:.4f} | {:.4f} |\n\nThe student's terms and its source's apply to this model too.\n",
      student.path().filename().string(), options.version, report.tokens, report.steps, report.trained_parameters,
      options.model.trainable == Trainable::all ? "all of them" : "the attention's", report.before.tokens,
      perplexity(report.before.cross_entropy), perplexity(report.after.cross_entropy), report.before.distillation,
      report.after.distillation);
}

TrainRecipe complete_recipe(const UptrainOptions& options) {
  TrainRecipe recipe = options.recipe;
  for (const UptrainStage& stage : options.stages) {
    TrainStage& train = recipe.stages.emplace_back(stage.train);
    train.schedule.steps = std::max<int64_t>(1, stage.tokens / (recipe.batch * options.window));
    train.schedule.warmup_steps =
        static_cast<int64_t>(std::llround(options.warmup_share * static_cast<double>(train.schedule.steps)));
  }
  return recipe;
}

class Run {
 public:
  Run(std::shared_ptr<ModelSource> student, std::shared_ptr<ModelSource> teacher, const UptrainOptions& options,
      std::shared_ptr<ProcessGroup> group)
      : student_(std::move(student)),
        options_(options),
        recipe_(complete_recipe(options)),
        group_(std::move(group)),
        folder_(training_folder(options.output.output)),
        data_(read_data(*student_, options_, recipe_.steps() * recipe_.batch * options.window)),
        model_(student_, options_.model, group_),
        samples_(std::move(data_.training.ids), options_.window, options_.seed, std::move(data_.training.documents)),
        validation_(std::move(data_.validation.ids), options_.window, 0, std::move(data_.validation.documents)) {
    if (teacher != nullptr) teacher_.emplace(std::move(teacher), model_);
    trainer_.emplace(model_, teacher_ ? &*teacher_ : nullptr, samples_, recipe_);
  }

  UptrainReport run() {
    const auto start = std::chrono::steady_clock::now();
    UptrainReport report;
    report.processes = group_->world();
    for (const Parameter& parameter : model_.parameters())
      report.trained_parameters +=
          std::accumulate(parameter.shape.begin(), parameter.shape.end(), int64_t{1}, std::multiplies<>());
    report.teacher_bytes = teacher_ ? teacher_->own_bytes() : 0;
    report.before = before();
    if (options_.resume && trainer_->resume(folder_)) report.resumed_steps = trainer_->steps_done();
    train(report);
    report.steps = trainer_->steps_done();
    report.tokens = report.steps * tokens_of_step();
    report.after = measure(model_, teacher_ ? &*teacher_ : nullptr, validation_, options_);
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report.tokens_per_second = static_cast<double>((report.steps - report.resumed_steps) * tokens_of_step()) /
                               std::max(training_seconds_, 1e-9);
    write(report);
    return report;
  }

 private:
  int64_t tokens_of_step() const { return recipe_.batch * options_.window; }

  /// Measured once, before the first step.
  HeldOutLosses before() {
    const fs::path file = folder_ / "before.json";
    const bool goes_on = options_.resume && !saved_steps(folder_).empty() && fs::exists(file);
    std::vector<double> known = {goes_on ? 0.0 : 1.0};
    group_->largest(known);  // all processes measure, or none
    if (known[0] == 0) {
      const JsonObject json = JsonObject::from_file(file);
      return {json.integer("tokens"), json.number("cross_entropy"), json.number("kl")};
    }
    const HeldOutLosses losses = measure(model_, teacher_ ? &*teacher_ : nullptr, validation_, options_);
    if (group_->first()) write_text(file, losses.to_json().dump() + "\n");
    return losses;
  }

  void train(UptrainReport& report) {
    const int64_t steps = recipe_.steps(), per_step = tokens_of_step(), resumed = report.resumed_steps;
    StateWriter states(folder_, group_, options_.keep);
    std::optional<Metrics> metrics;
    std::optional<Progress> progress;
    if (group_->first()) {
      metrics.emplace(folder_, resumed);
      progress.emplace(Progress::Options{
          .phase = "uptrain", .unit = "tokens", .total = static_cast<uint64_t>((steps - resumed) * per_step)});
    }
    const auto start = std::chrono::steady_clock::now();
    while (!trainer_->done()) {
      const StepReport step = trainer_->step();
      training_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (step.skipped) ++report.skipped_steps;
      if (group_->first()) {
        metrics->add(step, static_cast<double>((step.step - resumed) * per_step) / training_seconds_,
                     step.step * per_step);
        log_detail(fmt::format("step {}: loss {:.4f}, KL {:.4f}", step.step, step.loss, step.distillation));
        progress->set_note(recipe_.stages[step.stage].local
                               ? fmt::format("local {:.4f}", step.local)
                               : fmt::format("loss {:.4f}  KL {:.4f}", step.loss, step.distillation));
        progress->advance(static_cast<uint64_t>(per_step));
        if (step.skipped) {
          log_warning(fmt::format("step {}: loss {:.4g}, gradient norm {:.4g}: refused, nothing was changed", step.step,
                                  step.loss, step.gradient_norm));
        }
      }
      // All processes do the same at the same step: stop when one is asked to, complete a state when all have written.
      std::vector<double> ask = {interrupt_requested() ? 1.0 : 0.0, states.written() ? 0.0 : 1.0};
      group_->largest(ask);
      const bool stops = ask[0] > 0;
      if (states.busy() && ask[1] == 0) states.finish();
      if (stops || (step.step % options_.save_every == 0 && !trainer_->done())) trainer_->save(states);
      if (!stops) continue;
      states.finish();  // for all processes: launchers end the others when one is gone
      throw InterruptedError("interrupted", "the state is saved; the same command with --resume goes on");
    }
    states.finish();
    if (progress) progress->finish();
  }

  void write(const UptrainReport& report) {
    std::unique_ptr<ModelWriter> writer;
    std::map<std::string, WeightSpec> written;
    if (group_->first()) writer = ModelWriter::create(student_->config(), *student_, options_.output);
    model_.visit_trained([&](const std::string& name, const at::Tensor& value) {
      if (writer != nullptr) writer->write(name, value);
    });
    if (writer == nullptr) return group_->barrier();
    for (const WeightSpec& weight : student_->family().weights(student_->config())) {
      if (!model_.is_trained(weight.name)) writer->copy(weight.name);
    }
    const Json provenance = {
        {"cinch", options_.version},   {"command", "uptrain"},      {"source", student_->path().filename().string()},
        {"recipe", recipe_.to_json()}, {"data", samples_.digest()}, {"report", report.to_json()},
        {"digests", writer->digests()}};
    writer->write_side_file("cinch.json", provenance.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
    writer->write_side_file("README.md", model_card(*student_, report, options_));
    for (const auto& entry : fs::directory_iterator(folder_)) {
      const std::string name = entry.path().filename().string();
      if (name == kMetrics || name.starts_with("events.out.")) writer->write_side_file(name, read_text(entry.path()));
    }
    writer->commit();
    group_->barrier();
  }

  std::shared_ptr<ModelSource> student_;
  UptrainOptions options_;
  TrainRecipe recipe_;
  std::shared_ptr<ProcessGroup> group_;
  fs::path folder_;
  Data data_;
  TrainedModel model_;
  TokenSamples samples_, validation_;
  std::optional<Teacher> teacher_;
  std::optional<Trainer> trainer_;
  double training_seconds_ = 0;
};

/// Before any work: an unfinished run is gone on with, replaced, or refused.
void check_unfinished(const fs::path& folder, const UptrainOptions& options) {
  if (options.resume || saved_steps(folder).empty()) return;  // nothing to go on from is nothing to lose
  if (!options.output.force) {
    throw UsageError(fmt::format("there is an unfinished run to {}", options.output.output.string()),
                     "--resume goes on with it, --force starts over");
  }
  const FolderLock own(folder, kTraining);  // not one that runs
  fs::remove_all(folder);
}

}  // namespace

Json HeldOutLosses::to_json() const {
  return {{"tokens", tokens}, {"cross_entropy", cross_entropy}, {"kl", distillation}};
}

Json UptrainReport::to_json() const {
  return {{"steps", steps},
          {"resumed_steps", resumed_steps},
          {"tokens", tokens},
          {"skipped_steps", skipped_steps},
          {"processes", processes},
          {"trained_parameters", trained_parameters},
          {"teacher_bytes", teacher_bytes},
          {"before", before.to_json()},
          {"after", after.to_json()},
          {"seconds", seconds},
          {"tokens_per_second", tokens_per_second}};
}

fs::path training_folder(const fs::path& output) {
  const fs::path absolute = fs::absolute(output).lexically_normal();
  const fs::path clean = absolute.has_filename() ? absolute : absolute.parent_path();
  return clean.parent_path() / fmt::format(".{}.cinch-train", clean.filename().string());
}

UptrainReport uptrain(std::shared_ptr<ModelSource> student, std::shared_ptr<ModelSource> teacher,
                      const UptrainOptions& options, std::shared_ptr<ProcessGroup> group) {
  const fs::path folder = training_folder(options.output.output);
  const bool distils = std::any_of(options.stages.begin(), options.stages.end(), [](const UptrainStage& stage) {
    return stage.train.local || stage.train.loss.distillation > 0;
  });
  if (distils && teacher == nullptr)
    throw UsageError("distillation needs a teacher", "give --teacher MODEL, or --kd 0 --ce 1");
  if (!distils) teacher = nullptr;
  if (group->first()) {
    log_info(fmt::format("{} process{}, ZeRO {}: {} samples of {} tokens a step, {} at once", group->world(),
                         group->world() == 1 ? "" : "es", options.model.zero.level, options.recipe.batch,
                         options.window, options.recipe.micro_batch));
  }
  std::optional<FolderLock> lock;
  if (group->first()) {
    check_unfinished(folder, options);
    std::error_code failure;
    fs::create_directories(folder, failure);
    if (failure) throw_system_error("cannot create", folder, failure.value());
    lock.emplace(folder, kTraining);
  }
  group->barrier();
  const auto remove_folder = [&] {
    std::error_code ignored;
    if (group->first()) fs::remove_all(folder, ignored);
  };
  try {
    UptrainReport report = Run(std::move(student), std::move(teacher), options, group).run();
    remove_folder();
    return report;
  } catch (...) {
    if (saved_steps(folder).empty()) remove_folder();
    throw;
  }
}

}  // namespace cinch
