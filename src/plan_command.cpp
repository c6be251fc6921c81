#include <fmt/format.h>

#include <memory>

#include "convert/budget_sweep.h"
#include "convert/converter.h"
#include "core/errors.h"
#include "src/command_list.h"
#include "src/convert_options.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "src/plan_output.h"
#include "src/training_plan_options.h"
#include "src/training_plan_output.h"

namespace cinch {
namespace {

struct PlanFlags : ConvertFlags {
  std::vector<std::string> sweep;
  TrainingPlanFlags training;
};

std::string sweep_text(const std::vector<SweepRow>& rows) {
  std::vector<std::vector<std::string>> table = {
      {"of the cache", "bits", "R + Dr", "predicted error", "worst layer", "its error"}};
  for (const SweepRow& row : rows) {
    table.push_back({fmt::format("{:.1f} %", 100 * row.kv_ratio), std::to_string(row.bits),
                     row.budget > 0 ? fmt::format("{} + {}", row.rank, row.rope_dim) : "source",
                     fmt::format("{:.4f}", row.error), std::to_string(row.worst_layer),
                     fmt::format("{:.4f}", row.worst_error)});
  }
  return format_table(table) +
         "\nErrors are of the attention output, relative, predicted from the moments before any refit.\n";
}

void sweep(PlanFlags flags) {
  if (flags.statistics.empty()) {
    throw UsageError("--sweep needs --statistics: moments of the model",
                     "`cinch convert MODEL OUT --to mla --kv-budget 25% --statistics FILE.h5` measures them");
  }
  if (!flags.kv_budget.empty() || flags.recipe.rank != 0 || flags.recipe.rope_dim != -1) {
    throw UsageError("--sweep lists budgets: --kv-budget, --rank and --rope-dim contradict it");
  }
  std::vector<double> budgets;
  for (const std::string& budget : flags.sweep) budgets.push_back(parse_budget(budget));
  flags.kv_budget = flags.sweep.front();
  const ConversionRecipe recipe = recipe_of_flags(flags);
  const std::vector<SweepRow> rows =
      sweep_budgets(*open_model(flags.model, "MODEL"), recipe, budgets, flags.statistics);
  if (!json_output()) return print(sweep_text(rows));
  Json list = Json::array();
  for (const SweepRow& row : rows) list.push_back(row.to_json());
  print_json({{"model", flags.model}, {"statistics", flags.statistics}, {"sweep", list}});
}

/// MODEL as it is: the student of an uptraining.
void plan_student(const PlanFlags& flags) {
  const auto student = open_planned(flags.model, "MODEL");
  std::optional<ModelConfig> teacher;
  if (!flags.training.teacher.empty()) teacher = open_planned(flags.training.teacher, "--teacher")->config();
  const PlannedTraining training = plan_of_flags(flags.training, student->config(), teacher, flags.device);
  if (!json_output()) return print(training_plan_text(training.plan, training.device));
  print_json({{"model", flags.model}, {"uptraining", training_plan_json(training.plan, training.device)}});
}

void run(const PlanFlags& flags) {
  if (!flags.sweep.empty()) return sweep(flags);
  if (flags.training.uptrain && flags.to.empty()) return plan_student(flags);
  const ConversionRecipe recipe = recipe_of_flags(flags);
  const ModelWriterOptions output = output_of_flags(flags);
  const auto model = open_planned(flags.model, "MODEL");
  const ConversionPlan plan = plan_conversion(*model, recipe, output);
  if (!flags.training.uptrain) return print_plan(plan);
  const ModelConfig teacher =
      flags.training.teacher.empty() ? plan.source : open_planned(flags.training.teacher, "--teacher")->config();
  const PlannedTraining training = plan_of_flags(flags.training, plan.target, teacher, flags.device);
  if (!json_output()) return print(plan_text(plan) + "\n" + training_plan_text(training.plan, training.device));
  Json json = plan.to_json();
  json["uptraining"] = training_plan_json(training.plan, training.device);
  print_json(json);
}

}  // namespace

Command plan_command() {
  return {"plan", [](CLI::App& app) {
            auto flags = std::make_shared<PlanFlags>();
            CLI::App* command = app.add_subcommand(
                "plan",
                "What a conversion or an uptraining would do: sizes, cache bytes, memory, time, runtimes that load it");
            command
                ->add_option("MODEL", flags->model,
                             "Hugging Face folder, cinch folder, .gguf file, or a config.json alone")
                ->required()
                ->type_name("PATH");
            add_convert_options(*command, *flags);
            command
                ->add_option("--sweep", flags->sweep,
                             "mla: predict the error of each of these budgets (50%,25%,12.5%) from --statistics")
                ->delimiter(',')
                ->type_name("SHARE%");
            add_training_plan_options(*command, flags->training);
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
