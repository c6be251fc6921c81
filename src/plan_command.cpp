#include <memory>

#include "convert/converter.h"
#include "src/command_list.h"
#include "src/convert_options.h"
#include "src/model_argument.h"
#include "src/plan_output.h"

namespace cinch {
namespace {

void run(const ConvertFlags& flags) {
  const ConversionRecipe recipe = recipe_of_flags(flags);
  const ModelWriterOptions output = output_of_flags(flags);
  print_plan(plan_conversion(*open_model(flags.model, "MODEL"), recipe, output));
}

}  // namespace

Command plan_command() {
  return {"plan", [](CLI::App& app) {
            auto flags = std::make_shared<ConvertFlags>();
            CLI::App* command = app.add_subcommand(
                "plan", "What a conversion would do: sizes, cache bytes, cost, and which runtimes load the result");
            command->add_option("MODEL", flags->model, "Hugging Face folder, cinch folder or .gguf file")
                ->required()
                ->type_name("PATH");
            add_convert_options(*command, *flags);
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
