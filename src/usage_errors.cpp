#include "src/usage_errors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "core/json.h"
#include "src/output.h"

namespace cinch {
namespace {

const CLI::App& parsed_command(const CLI::App& app) {
  const auto parsed = app.get_subcommands();
  return parsed.empty() ? app : *parsed.front();
}

std::string see_help(const CLI::App& command) {
  const bool root = command.get_parent() == nullptr;
  return fmt::format("see `cinch {}--help`", root ? "" : command.get_name() + " ");
}

void add_flags(const CLI::App& command, std::vector<std::string>& flags) {
  for (const CLI::Option* option : command.get_options({})) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
    for (const std::string& name : option->get_snames()) flags.push_back("-" + name);
  }
}

UsageError unknown_flag(const CLI::App& app, const CLI::App& command, const std::string& argument) {
  const std::string flag = argument.substr(0, argument.find('='));
  std::vector<std::string> flags;
  add_flags(command, flags);
  if (&command != &app) add_flags(app, flags);
  const std::string nearest = nearest_word(flag, flags);
  const std::string owner = &command == &app ? "cinch" : "cinch " + command.get_name();
  return UsageError(fmt::format("unknown flag {} for `{}`", flag, owner),
                    nearest.empty() ? see_help(command) : fmt::format("did you mean {}?", nearest));
}

UsageError unknown_command(const CLI::App& app, const std::string& word) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  const std::string nearest = nearest_word(word, names);
  return UsageError(
      fmt::format("unknown command \"{}\"", word),
      nearest.empty() ? "`cinch --help` lists the commands" : fmt::format("did you mean `cinch {}`?", nearest));
}

/// "--window" of "Could not convert: --window = abc".
const CLI::Option* option_in_message(const CLI::App& app, const CLI::App& command, const std::string& message) {
  const CLI::Option* found = nullptr;
  size_t longest = 0;
  for (const CLI::App* owner : {&command, &app}) {
    for (const CLI::Option* option : owner->get_options({})) {
      const std::string name = option->get_name();
      if (name.size() > longest && message.find(name) != std::string::npos) {
        found = option;
        longest = name.size();
      }
    }
  }
  return found;
}

std::string type_in_words(const std::string& type) {
  if (type == "INT" || type == "N") return "a whole number";
  if (type == "UINT") return "a whole number, 0 or more";
  if (type == "FLOAT" || type == "NUMBER") return "a number";
  if (type == "SHARE") return "a number between 0 and 1";
  if (type == "BOOL") return "true or false";
  return type;
}

UsageError bad_value(const CLI::App& app, const CLI::App& command, const CLI::ParseError& error) {
  const CLI::Option* option = option_in_message(app, command, error.what());
  if (option == nullptr) return UsageError(error.what(), see_help(command));
  std::string seen;
  for (const std::string& value : option->results()) seen += (seen.empty() ? "" : " ") + value;
  return UsageError(
      fmt::format("{}: expected {}, found \"{}\"", option->get_name(), type_in_words(option->get_type_name()), seen),
      see_help(command));
}

UsageError missing_value(const CLI::App& app, const CLI::App& command, const CLI::ParseError& error) {
  const CLI::Option* option = option_in_message(app, command, error.what());
  if (option == nullptr || option->get_name().empty() || option->get_name().front() != '-')
    return UsageError(error.what(), see_help(command));
  return UsageError(fmt::format("{}: needs a value ({})", option->get_name(), option->get_type_name()),
                    see_help(command));
}

/// CLI11 takes the nearest number that fits instead.
bool out_of_range(const std::string& value, const std::string& type) {
  errno = 0;
  if (type == "UINT") {
    std::strtoull(value.c_str(), nullptr, 0);
    return errno == ERANGE || value.front() == '-';
  }
  if (type == "INT" || type == "N") std::strtoll(value.c_str(), nullptr, 0);
  return errno == ERANGE;
}

/// Where no one said anything better.
std::string default_help(ExitCode code, const std::string& usage_help) {
  switch (code) {
    case ExitCode::usage:
      return usage_help.empty() ? "`cinch --help` lists the commands" : usage_help;
    case ExitCode::bad_input:
      return "correct the named file, or copy or download it again";
    case ExitCode::unsupported:
      return "choose another model, target or format";
    case ExitCode::resources:
      return "close other programs, or use a machine with more memory";
    case ExitCode::interrupted:
      return "run the command again";
    default:
      return {};
  }
}

/// Names and values may hold anything; a terminal must not act on it.
std::string printable(const std::string& line) {
  std::string text;
  for (const char c : line) {
    const auto code = static_cast<unsigned char>(c);
    text += (code < 0x20 && c != '\n') || code == 0x7f ? fmt::format("\\x{:02x}", code) : std::string(1, c);
  }
  return text;
}

std::string without_backtrace(std::string line) {
  const size_t trace = line.find("\nException raised from");
  if (trace != std::string::npos) line.resize(trace);
  return line;
}

}  // namespace

UsageError usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = parsed_command(app);
  for (const std::string& argument : app.remaining(true)) {
    if (argument.size() > 1 && argument.front() == '-' && argument != "--") return unknown_flag(app, command, argument);
  }
  const auto left = app.remaining(true);
  if (&command == &app && !left.empty()) return unknown_command(app, left.front());
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr && !left.empty()) {
    return UsageError(fmt::format("`cinch {}` does not take the argument \"{}\"", command.get_name(), left.front()),
                      see_help(command));
  }
  if (&command == &app && dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    return UsageError("no command given", "`cinch --help` lists the commands");
  }
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    return UsageError(fmt::format("`cinch {}`: {}", command.get_name(), error.what()), see_help(command));
  }
  if (dynamic_cast<const CLI::ConversionError*>(&error) != nullptr) return bad_value(app, command, error);
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) return missing_value(app, command, error);
  if (dynamic_cast<const CLI::FileError*>(&error) != nullptr) {
    return UsageError(fmt::format("--config: {}", error.what()), "give the path of a recipe file");
  }
  return UsageError(error.what(), see_help(command));
}

std::string help_of_command(const CLI::App& app) { return see_help(parsed_command(app)); }

void check_given_values(const CLI::App& app) {
  const CLI::App& command = parsed_command(app);
  for (const CLI::App* owner : {&app, &command}) {
    for (const CLI::Option* option : owner->get_options({})) {
      if (option->get_expected_max() == 0 || option->check_name("--prompt")) continue;  // an empty prompt is one
      for (const std::string& value : option->results()) {
        if (value.empty())
          throw UsageError(fmt::format("{}: the value is empty", option->get_name()), see_help(command));
        if (out_of_range(value, option->get_type_name())) {
          throw UsageError(fmt::format("{}: expected {}, found {}", option->get_name(),
                                       type_in_words(option->get_type_name()), value),
                           see_help(command));
        }
      }
    }
  }
}

int report_error(const std::exception& error, const std::string& usage_help) {
  ErrorReport report = describe_error(error);
  for (std::string& line : report.lines) {
    line = printable(without_backtrace(line));
    if (line.find("DefaultCPUAllocator") != std::string::npos || line.find("CUDA out of memory") != std::string::npos) {
      report.exit_code = ExitCode::resources;
      line = "not enough memory: " + line;
    }
  }
  if (report.help.empty()) report.help = default_help(report.exit_code, usage_help);
  const bool color = stderr_has_color();
  std::string text;
  for (size_t i = 0; i < report.lines.size(); ++i) {
    text += i > 0   ? fmt::format("  while {}\n", report.lines[i])
            : color ? fmt::format("\x1b[1;31merror:\x1b[0m {}\n", report.lines[i])
                    : fmt::format("error: {}\n", report.lines[i]);
  }
  if (!report.help.empty())
    text += fmt::format("{}help:{} {}\n", color ? "\x1b[1m" : "", color ? "\x1b[0m" : "", report.help);
  std::fputs(text.c_str(), stderr);  // nobody could be told that this failed
  return static_cast<int>(report.exit_code);
}

void require_choice(const std::string& flag, const std::string& value, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  const std::string nearest = nearest_word(value, choices);
  throw UsageError(fmt::format("{}: unknown value \"{}\"; known: {}", flag, value, fmt::join(choices, ", ")),
                   nearest.empty() ? std::string() : fmt::format("did you mean \"{}\"?", nearest));
}

}  // namespace cinch
