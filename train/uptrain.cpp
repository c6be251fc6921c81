#include "train/uptrain.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <numeric>

#include "core/errors.h"
#include "core/files.h"
#include "core/progress.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

struct Data {
  std::vector<int64_t> training, validation;
};

/// Every source fills its share of the tokens, again from its start where it is short; validation windows come from the
/// ends, which training does not see.
Data read_data(const ModelSource& model, const UptrainOptions& options) {
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
    const std::vector<int64_t> ids =
        is_token_file(spec.path) ? read_token_file(spec.path) : tokenize_corpus(*tokenizer, spec.path);
    for (const int64_t id : ids) {
      if (id < 0 || id >= model.config().vocab_size) {
        throw ConfigError(fmt::format("{}: id {} is not in the student's vocabulary of {}", spec.path.string(), id,
                                      model.config().vocab_size),
                          "the text was tokenised for another model");
      }
    }
    const double share = spec.weight / total;
    const auto held = static_cast<int64_t>(std::llround(share * static_cast<double>(options.validation_windows)));
    const int64_t kept = static_cast<int64_t>(ids.size()) - held * (options.window + 1);
    if (kept < options.window + 1) {
      throw UsageError(fmt::format("{}: {} tokens are too few for windows of {}, {} of them held out",
                                   spec.path.string(), ids.size(), options.window, held),
                       "give more text, a shorter --window, or fewer --validation-windows");
    }
    data.validation.insert(data.validation.end(), ids.begin() + kept, ids.end());
    auto wanted = static_cast<int64_t>(std::llround(share * static_cast<double>(options.tokens)));
    for (; wanted > 0; wanted -= kept)
      data.training.insert(data.training.end(), ids.begin(), ids.begin() + std::min(kept, wanted));
  }
  data.training.push_back(data.training.front());  // the last window's last target
  return data;
}

HeldOutLosses measure(const TrainedModel& model, const Teacher* teacher, const std::vector<int64_t>& ids,
                      const UptrainOptions& options) {
  const at::NoGradGuard no_grad;
  HeldOutLosses sums;
  const int64_t length = options.window, count = static_cast<int64_t>(ids.size()) / (length + 1);
  for (int64_t w = 0; w < count; ++w) {
    const auto window =
        at::tensor(at::ArrayRef<int64_t>(ids.data() + w * (length + 1), static_cast<size_t>(length + 1)), at::kLong);
    const at::Tensor input = window.slice(0, 0, length).unsqueeze(0);
    LossInputs inputs{.hidden = model.hidden(input)[0],
                      .head = model.head(),
                      .teacher_hidden = {},
                      .teacher_head = {},
                      .targets = window.slice(0, 1)};
    if (teacher != nullptr) {
      inputs.teacher_hidden = teacher->hidden(input)[0];
      inputs.teacher_head = teacher->head();
    }
    const LossValue loss = linear_cross_entropy_kd(inputs, {.weights = {1.0, teacher != nullptr ? 1.0 : 0.0},
                                                            .softcap = model.config().final_logit_softcap,
                                                            .chunk_bytes = options.recipe.chunk_bytes});
    sums.cross_entropy += loss.cross_entropy.item<double>() / static_cast<double>(count);
    sums.distillation += loss.distillation.item<double>() / static_cast<double>(count);
    sums.tokens += length;
  }
  return sums;
}

/// One JSON object per step; what lies beyond the step that a run resumes from is cut off.
class Metrics {
 public:
  Metrics(const fs::path& file, int64_t done) {
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
    stream_ << Json({{"step", step.step},
                     {"tokens", tokens},
                     {"loss", step.loss},
                     {"cross_entropy", step.cross_entropy},
                     {"kl", step.distillation},
                     {"gradient_norm", step.gradient_norm},
                     {"learning_rate", step.learning_rate},
                     {"skipped", step.skipped},
                     {"tokens_per_second", tokens_per_second}})
                   .dump()
            << std::endl;
  }

 private:
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

class Run {
 public:
  Run(std::shared_ptr<ModelSource> student, std::shared_ptr<ModelSource> teacher, UptrainOptions options)
      : student_(std::move(student)),
        options_(std::move(options)),
        data_(read_data(*student_, options_)),
        model_(student_, options_.model),
        samples_(data_.training, options_.window, options_.seed) {
    if (teacher != nullptr) teacher_.emplace(std::move(teacher), model_, options_.model.compute, options_.model.device);
    TrainRecipe& recipe = options_.recipe;
    recipe.schedule.steps = std::max<int64_t>(1, options_.tokens / (recipe.batch * options_.window));
    recipe.schedule.warmup_steps =
        static_cast<int64_t>(std::llround(options_.warmup_share * static_cast<double>(recipe.schedule.steps)));
    trainer_.emplace(model_, teacher_ ? &*teacher_ : nullptr, samples_, recipe);
  }

  UptrainReport run() {
    const auto start = std::chrono::steady_clock::now();
    const fs::path folder = training_folder(options_.output.output);
    UptrainReport report;
    for (const Parameter& parameter : model_.parameters()) report.trained_parameters += parameter.value.numel();
    report.teacher_bytes = teacher_ ? teacher_->own_bytes() : 0;
    report.before = before(folder);
    if (options_.resume && trainer_->resume(folder)) report.resumed_steps = trainer_->steps_done();
    train(folder, report.resumed_steps);
    report.steps = trainer_->steps_done();
    report.tokens = report.steps * options_.recipe.batch * options_.window;
    report.after = measure(model_, teacher_ ? &*teacher_ : nullptr, data_.validation, options_);
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report.tokens_per_second =
        static_cast<double>((report.steps - report.resumed_steps) * options_.recipe.batch * options_.window) /
        std::max(training_seconds_, 1e-9);
    write(report);
    std::error_code ignored;
    fs::remove_all(folder, ignored);
    return report;
  }

 private:
  /// Measured once, before the first step.
  HeldOutLosses before(const fs::path& folder) {
    const fs::path file = folder / "before.json";
    if (options_.resume && fs::exists(file)) {
      const JsonObject json = JsonObject::from_file(file);
      return {json.integer("tokens"), json.number("cross_entropy"), json.number("kl")};
    }
    fs::create_directories(folder);
    const HeldOutLosses losses = measure(model_, teacher_ ? &*teacher_ : nullptr, data_.validation, options_);
    write_text(file, losses.to_json().dump() + "\n");
    return losses;
  }

  void train(const fs::path& folder, int64_t resumed) {
    const int64_t steps = options_.recipe.schedule.steps, per_step = options_.recipe.batch * options_.window;
    Metrics metrics(folder / "metrics.jsonl", resumed);
    Progress progress(
        {.phase = "uptrain", .unit = "tokens", .total = static_cast<uint64_t>((steps - resumed) * per_step)});
    const auto start = std::chrono::steady_clock::now();
    while (!trainer_->done()) {
      const StepReport step = trainer_->step();
      training_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      metrics.add(step, static_cast<double>((step.step - resumed) * per_step) / training_seconds_,
                  step.step * per_step);
      log_detail(fmt::format("step {}: loss {:.4f}, KL {:.4f}", step.step, step.loss, step.distillation));
      progress.advance(static_cast<uint64_t>(per_step));
      if (step.skipped) log_warning(fmt::format("step {}: a gradient was not finite, nothing was changed", step.step));
      const bool stops = interrupt_requested();
      if (stops || (step.step % options_.save_every == 0 && !trainer_->done())) trainer_->save(folder);
      if (stops) check_interrupt("the state is saved; the same command with --resume goes on");
    }
    progress.finish();
  }

  void write(const UptrainReport& report) {
    const auto writer = ModelWriter::create(student_->config(), *student_, options_.output);
    std::map<std::string, at::Tensor> trained;
    for (const Parameter& parameter : model_.parameters()) trained[parameter.name] = parameter.value.detach().cpu();
    for (const WeightSpec& weight : student_->family().weights(student_->config())) {
      if (const auto found = trained.find(weight.name); found != trained.end()) {
        writer->write(weight.name, found->second);
      } else {
        writer->copy(weight.name);
      }
    }
    const Json provenance = {{"cinch", options_.version},
                             {"command", "uptrain"},
                             {"source", student_->path().filename().string()},
                             {"recipe", options_.recipe.to_json()},
                             {"data", samples_.digest()},
                             {"report", report.to_json()},
                             {"digests", writer->digests()}};
    writer->write_side_file("cinch.json", provenance.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
    writer->write_side_file("README.md", model_card(*student_, report, options_));
    writer->commit();
  }

  std::shared_ptr<ModelSource> student_;
  UptrainOptions options_;
  Data data_;
  TrainedModel model_;
  TokenSamples samples_;
  std::optional<Teacher> teacher_;
  std::optional<Trainer> trainer_;
  double training_seconds_ = 0;
};

}  // namespace

Json HeldOutLosses::to_json() const {
  return {{"tokens", tokens}, {"cross_entropy", cross_entropy}, {"kl", distillation}};
}

Json UptrainReport::to_json() const {
  return {{"steps", steps},
          {"resumed_steps", resumed_steps},
          {"tokens", tokens},
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
                      const UptrainOptions& options) {
  const fs::path folder = training_folder(options.output.output);
  if (fs::exists(folder) && !options.resume) {
    if (!options.output.force) {
      throw UsageError(fmt::format("there is an unfinished run to {}", options.output.output.string()),
                       "--resume goes on with it, --force starts over");
    }
    fs::remove_all(folder);
  }
  if (options.recipe.loss.distillation == 0) teacher = nullptr;
  if (options.recipe.loss.distillation > 0 && teacher == nullptr) {
    throw UsageError("distillation needs a teacher", "give --teacher MODEL, or --kd 0 --ce 1");
  }
  return Run(std::move(student), std::move(teacher), options).run();
}

}  // namespace cinch
