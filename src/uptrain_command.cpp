#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <memory>

#include "attention/attention_kernel.h"
#include "core/errors.h"
#include "core/progress.h"
#include "src/command.h"
#include "src/command_list.h"
#include "src/device.h"
#include "src/kernel_option.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "src/output_target.h"
#include "src/usage_errors.h"
#include "train/launch/launch.h"
#include "train/launch/launch_children.h"
#include "train/planning/loss_bytes.h"
#include "train/uptrain.h"

namespace cinch {
namespace {

struct UptrainFlags {
  std::string student, teacher, trainable = "attention", dtype = "f32", device = "cpu", kernel = "auto";
  std::vector<std::string> data;
  int64_t tokens = 0, local_tokens = 0, ce_tokens = 0;
  TrainStage local = {.local = true,
                      .loss = {},
                      .learning_rates = {1e-3, 1e-3, 0},
                      .relative_rates = true,
                      .schedule = {.kind = "cosine", .floor = 0.05}};
  TrainStage main;
  double kept_rate = -1;  // as the fresh
  int zero = 0, nproc = 1;
  UptrainOptions options;
};

/// local, then the losses of --kd and --ce, then the next token alone.
std::vector<UptrainStage> stages_of(const UptrainFlags& flags) {
  const auto tokens = [](const char* flag, int64_t value) {
    if (value < 0) throw UsageError(fmt::format("{} {}: expected a number of tokens", flag, value));
    return value;
  };
  std::vector<UptrainStage> stages;
  if (tokens("--local-tokens", flags.local_tokens) > 0) {
    TrainStage local = flags.local;
    local.learning_rates[1] = local.learning_rates[0];
    stages.push_back({local, flags.local_tokens});
  }
  TrainStage main = flags.main;
  main.learning_rates[1] = flags.kept_rate < 0 ? main.learning_rates[0] : flags.kept_rate;
  if (tokens("--tokens", flags.tokens) > 0) stages.push_back({main, flags.tokens});
  if (tokens("--ce-tokens", flags.ce_tokens) > 0) {
    main.loss = {.cross_entropy = 1, .distillation = 0};
    stages.push_back({main, flags.ce_tokens});
  }
  if (stages.empty()) throw UsageError("there is nothing to train", "give --tokens N, or --local-tokens N");
  return stages;
}

UptrainOptions checked(const UptrainFlags& flags, const std::string& device) {
  UptrainOptions options = flags.options;
  require_choice("--trainable", flags.trainable, {"attention", "all"});
  require_choice("--dtype", flags.dtype, {"f32", "bf16", "f64"});
  for (const std::string& file : flags.data) {
    try {
      options.data.push_back(parse_corpus_spec(file));
    } catch (const UsageError& error) {
      throw UsageError(fmt::format("--data: {}", error.what()), error.help());
    }
  }
  const auto positive = [](const char* flag, int64_t value) {
    if (value <= 0) throw UsageError(fmt::format("{} {}: expected a number above 0", flag, value));
  };
  positive("--window", options.window);
  positive("--batch", options.recipe.batch);
  positive("--micro-batch", options.recipe.micro_batch);
  positive("--save-every", options.save_every);
  positive("--validation-windows", options.validation_windows);
  if (!(options.warmup_share >= 0 && options.warmup_share <= 1))
    throw UsageError(fmt::format("--warmup {}: expected a share from 0 to 1", options.warmup_share));
  if (options.keep < 1) throw UsageError(fmt::format("--keep {}: expected at least 1", options.keep));
  if (flags.zero < 0 || flags.zero > 3) throw UsageError(fmt::format("--zero {}: expected 0 to 3", flags.zero));
  options.model.zero = {flags.zero};
  options.stages = stages_of(flags);
  options.model.trainable = flags.trainable == "all" ? Trainable::all : Trainable::attention;
  options.model.compute = compute_dtype(flags.dtype);
  options.model.device = open_device(device);
  force_attention_kernel(flags.kernel);
  options.recipe.chunk_bytes = loss_chunk_bytes(options.model.device.is_cpu());
  options.version = CINCH_VERSION;
  return options;
}

/// --device cuda: each process of a node takes a GPU of its own.
std::string device_of(const std::string& device, const Launch& launch) {
  return device == "cuda" && launch.local_world > 1 ? fmt::format("cuda:{}", launch.local_rank) : device;
}

std::shared_ptr<ProcessGroup> join(const Launch& launch, at::Device device) {
  if (launch.world < 2) return single_process();
  if (launch.rank == 0) log_info(describe(launch));
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  return join_processes({.rank = launch.rank,
                         .world = launch.world,
                         .file = launch.store_file,
                         .host = launch.master_address,
                         .port = launch.master_port,
                         .hosts_store = !launch.agent_store && launch.rank == 0,
                         .prefix = store_prefix(launch),
                         .interface = interface != nullptr ? interface : launch.nodes == 1 ? "lo" : ""},
                        device);
}

/// Whether a finished model is there that --resume may leave alone, as a job that is queued again does. Throws
/// UsageError when something is in the way.
bool is_finished(const UptrainOptions& options) {
  const std::filesystem::path& out = options.output.output;
  if (options.output.force || !std::filesystem::exists(out)) return false;
  if (options.resume && !std::filesystem::exists(training_folder(out))) return true;
  throw UsageError(fmt::format("OUT: {} exists already", out.string()),
                   "choose another output, or --force replaces it");
}

void print_report(const UptrainOptions& options, const UptrainReport& report) {
  if (json_output()) {
    Json json = {{"output", options.output.output.string()}};
    json.update(report.to_json());
    return print_json(json);
  }
  print(fmt::format("On {} held-out tokens: perplexity {:.4g} -> {:.4g}, KL {:.4f} -> {:.4f} nats\n",
                    report.before.tokens, std::exp(report.before.cross_entropy), std::exp(report.after.cross_entropy),
                    report.before.distillation, report.after.distillation));
  print(fmt::format("{}: {} steps, {} tokens at {:.0f} tokens/s, {} trained parameters\n",
                    options.output.output.string(), report.steps, report.tokens, report.tokens_per_second,
                    human_count(static_cast<uint64_t>(report.trained_parameters))));
}

void train(const UptrainFlags& flags, const Launch& launch) {
  UptrainOptions options = checked(flags, device_of(flags.device, launch));
  const auto student = open_model(flags.student, "STUDENT");
  check_output_target(flags.student, options.output.output, options.output.force);
  if (is_finished(options)) {
    if (launch.rank == 0) log_info(fmt::format("{} is there already", options.output.output.string()));
    return;
  }
  const auto teacher = flags.teacher.empty() ? nullptr : open_model(flags.teacher, "--teacher");
  if (options.window > student->config().max_position_embeddings) {
    throw UsageError(fmt::format("--window {}: the student's context is {}", options.window,
                                 student->config().max_position_embeddings));
  }
  options.output.format = std::filesystem::exists(student->path() / "model.h5") ? "hdf5" : "native";
  const auto processes = join(launch, options.model.device);
  const UptrainReport report = uptrain(student, teacher, options, processes);
  if (processes->first()) print_report(options, report);
}

void run(const UptrainFlags& flags) {
  if (flags.nproc < 1) throw UsageError(fmt::format("--nproc {}: expected at least 1", flags.nproc));
  if (flags.nproc > 1 && std::getenv(kChildRank) == nullptr)
    throw ExitWith{run_children(flags.nproc, program_arguments())};
  const Launch launch = resolve_launch(current_environment());
  if (launch.world < 2) return train(flags, launch);
  with_context(fmt::format("on process {} of {}", launch.rank, launch.world), [&] { train(flags, launch); });
}

void add_options(CLI::App& command, UptrainFlags& flags) {
  UptrainOptions& options = flags.options;
  TrainRecipe& recipe = options.recipe;
  command.add_option("STUDENT", flags.student, "Converted model: cinch or Hugging Face folder")
      ->required()
      ->type_name("PATH");
  command.add_option("OUT", options.output.output, "Folder to write")->required()->type_name("PATH");
  command.add_option("--teacher", flags.teacher, "Model to learn from, usually the one before conversion")
      ->type_name("PATH");
  command.add_option("--data", flags.data, "Texts or token files, with their shares of the tokens")
      ->type_name("FILE[:WEIGHT]");
  command.add_option("--tokens", flags.tokens, "Tokens to train on, by --kd and --ce")->type_name("INT");
  command
      .add_option("--local-tokens", flags.local_tokens,
                  "Tokens of a stage before: each attention learns the teacher's outputs")
      ->type_name("INT");
  command.add_option("--ce-tokens", flags.ce_tokens, "Tokens of a stage after: the next token alone")->type_name("INT");
  command.add_option("--window", options.window, "Tokens of a sample")->capture_default_str()->type_name("INT");
  command.add_option("--batch", recipe.batch, "Samples of a step")->capture_default_str()->type_name("INT");
  command.add_option("--micro-batch", recipe.micro_batch, "Samples that a process runs at once")
      ->capture_default_str()
      ->type_name("INT");
  command.add_option("--kd", flags.main.loss.distillation, "Weight of KL(teacher || student)")
      ->capture_default_str()
      ->type_name("NUMBER");
  command.add_option("--ce", flags.main.loss.cross_entropy, "Weight of the next-token loss")
      ->capture_default_str()
      ->type_name("NUMBER");
  command.add_option("--trainable", flags.trainable, "What is trained")
      ->capture_default_str()
      ->type_name("attention|all");
  command.add_option("--lr", flags.main.learning_rates[0], "Learning rate of attention weights")
      ->capture_default_str()
      ->type_name("NUMBER");
  command.add_option("--kept-lr", flags.kept_rate, "Of those that have the teacher's shape (default: --lr)")
      ->type_name("NUMBER");
  command
      .add_option("--local-lr", flags.local.learning_rates[0],
                  "Of the local stage, times each matrix's root mean square")
      ->capture_default_str()
      ->type_name("NUMBER");
  command.add_flag("--relative-lr", flags.main.relative_rates,
                   "--lr and the like are times the root mean square of each matrix");
  command.add_option("--trunk-lr", flags.main.learning_rates[2], "Learning rate of all others")
      ->capture_default_str()
      ->type_name("NUMBER");
  command.add_option("--weight-decay", recipe.weight_decay, "Of matrices")->capture_default_str()->type_name("NUMBER");
  command.add_option("--clip", recipe.clip, "Largest norm of the gradients; 0: none")
      ->capture_default_str()
      ->type_name("NUMBER");
  command.add_option("--schedule", flags.main.schedule.kind, "Of the learning rate")
      ->capture_default_str()
      ->type_name("wsd|cosine");
  command
      .add_option("--guard", recipe.guard.deviations,
                  "Steps whose loss lies so many deviations above are refused; 0: none")
      ->capture_default_str()
      ->type_name("NUMBER");
  command.add_option("--warmup", options.warmup_share, "Share of a stage's steps")
      ->capture_default_str()
      ->type_name("SHARE");
  command.add_option("--decay", flags.main.schedule.decay_share, "wsd: share of a stage's steps")
      ->capture_default_str()
      ->type_name("SHARE");
  command.add_option("--validation-windows", options.validation_windows, "Held out of the end of the data")
      ->capture_default_str()
      ->type_name("INT");
  command.add_option("--save-every", options.save_every, "Steps between states")
      ->capture_default_str()
      ->type_name("INT");
  command.add_option("--keep", options.keep, "States that stay")->capture_default_str()->type_name("INT");
  command
      .add_option("--nproc", flags.nproc, "Processes on this machine; elsewhere torchrun, srun or mpirun start them")
      ->capture_default_str()
      ->type_name("N");
  command.add_option("--zero", flags.zero, "What processes share: 0 nothing, 1 states, 2 gradients too, 3 weights too")
      ->capture_default_str()
      ->type_name("0|1|2|3");
  command.add_option("--seed", options.seed, "Seed of the order of samples")->capture_default_str()->type_name("UINT");
  command.add_option("--dtype", flags.dtype, "Type to compute in; trained weights stay in f32 (f64)")
      ->capture_default_str()
      ->type_name("f32|bf16|f64");
  command.add_option("--device", flags.device, "cpu, or cuda[:i]")->capture_default_str()->type_name("DEVICE");
  add_kernel_option(command, flags.kernel);
  command.add_flag("--recompute", options.model.recompute,
                   "Keep one activation per layer, run layers again for gradients");
  command.add_flag("--force", options.output.force, "Replace an existing OUT; start an unfinished run over");
  command.add_flag("--resume", options.resume, "Go on with an interrupted run to OUT");
}

}  // namespace

Command uptrain_command() {
  return {"uptrain", [](CLI::App& app) {
            auto flags = std::make_shared<UptrainFlags>();
            CLI::App* command =
                app.add_subcommand("uptrain", "Heal a converted model with a short training on its source");
            add_options(*command, *flags);
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
