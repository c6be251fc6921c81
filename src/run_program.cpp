#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <memory>

#include "core/progress.h"
#include "src/command.h"
#include "src/output.h"
#include "src/recipe_file.h"
#include "src/usage_errors.h"

namespace cinch {
namespace {

constexpr const char* kDescription =
    "cinch tightens the KV cache of a trained language model: it converts attention to fewer shared heads, measures\n"
    "what that cost, and writes a checkpoint that common runtimes load unchanged.";

constexpr const char* kCommandFooter =
    "Everywhere: --json (one object on stdout), -q,--quiet, -v,--verbose, --threads N, --config FILE (recipe), "
    "--print-config.";

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 1 failed, 2 bad usage, 3 bad input file, 4 target cannot represent the model,\n"
    "5 verification failed, 6 not enough memory or disk, 130 interrupted.";

std::vector<std::string>& arguments() {
  static std::vector<std::string> given;
  return given;
}

constexpr int kMostThreads = 4096;

struct GlobalFlags {
  bool json = false, quiet = false, verbose = false, print_config = false;
  int threads = 0;
};

void apply(const CLI::App& app, const GlobalFlags& flags) {
  check_given_values(app);
  if (flags.quiet && flags.verbose) throw UsageError("--quiet and --verbose contradict each other", "give one of them");
  if (app.count("--threads") > 0 && (flags.threads < 1 || flags.threads > kMostThreads)) {
    throw UsageError(fmt::format("--threads: expected 1 to {}, found {}", kMostThreads, flags.threads),
                     "leave it out to use every core");
  }
  set_json_output(flags.json);
  set_verbosity(flags.quiet ? Verbosity::quiet : flags.verbose ? Verbosity::verbose : Verbosity::normal);
  if (flags.threads > 0) at::set_num_threads(flags.threads);
  if (flags.print_config) {
    print(recipe_of(*app.get_subcommands().front()));
    throw CLI::Success();
  }
}

std::unique_ptr<CLI::App> make_app(GlobalFlags& flags) {
  auto app = std::make_unique<CLI::App>(kDescription, "cinch");
  app->footer(kExitCodes);
  app->set_version_flag("--version", "cinch " CINCH_VERSION);
  app->add_flag("--json", flags.json, "Print one JSON object on stdout");
  app->add_flag("-q,--quiet", flags.quiet, "No progress, no notes");
  app->add_flag("-v,--verbose", flags.verbose, "More notes on stderr");
  app->add_option("--threads", flags.threads, "CPU threads (default: every core, or OMP_NUM_THREADS)")->type_name("N");
  app->add_flag("--print-config", flags.print_config, "Print the resolved recipe of the command and stop");
  app->set_config("--config", "", "Recipe: a TOML file whose keys are the command's options; flags win")
      ->type_name("FILE");
  app->config_formatter(std::make_shared<RecipeFormat>(app.get()));
  for (const Command& command : commands()) command.add(*app);
  for (CLI::App* command : app->get_subcommands({})) {
    command->fallthrough();
    command->footer(kCommandFooter);
  }
  app->require_subcommand(1);
  const CLI::App* self = app.get();
  app->parse_complete_callback([self, &flags] { apply(*self, flags); });
  return app;
}

int run(int argc, const char* const* argv) {
  GlobalFlags flags;
  const auto app = make_app(flags);
  try {
    app->parse(argc, argv);
    return static_cast<int>(ExitCode::done);
  } catch (const CLI::CallForHelp&) {
    const auto parsed = app->get_subcommands();
    print(parsed.empty() ? app->help() : parsed.front()->help(app->get_name()));
  } catch (const CLI::CallForVersion&) {
    print(app->version() + "\n");
  } catch (const CLI::Success&) {
    return static_cast<int>(ExitCode::done);
  } catch (const ExitWith& exit) {
    return exit.code;
  } catch (const CLI::ParseError& error) {
    return report_error(usage_error(*app, error));
  } catch (const ClosedPipe&) {
    throw;
  } catch (const std::exception& error) {
    return report_error(error, help_of_command(*app));
  }
  return static_cast<int>(ExitCode::done);
}

}  // namespace

const std::vector<std::string>& program_arguments() { return arguments(); }

int run_program(int argc, const char* const* argv) {
  arguments().assign(argv + std::min(argc, 1), argv + argc);
  claim_standard_streams();
  std::signal(SIGPIPE, SIG_IGN);
  install_interrupt_handlers();
  try {
    return run(argc, argv);
  } catch (const ClosedPipe&) {
    return static_cast<int>(ExitCode::done);
  } catch (const std::exception& error) {
    return report_error(error);
  }
}

}  // namespace cinch
