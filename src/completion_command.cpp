// Shell completion written out of the parser's own tree, so that it knows every command, flag and listed value.
#include <fmt/format.h>

#include <memory>

#include "core/errors.h"
#include "src/command_list.h"
#include "src/output.h"
#include "src/usage_errors.h"

namespace cinch {
namespace {

struct Flag {
  std::vector<std::string> names;    // "--format", "-f"
  std::vector<std::string> choices;  // of a type name "hf|gguf"
  std::string description;
  bool takes_value = false;
};

std::vector<std::string> split_choices(const std::string& type) {
  std::vector<std::string> choices;
  if (type.find('|') == std::string::npos) return choices;
  size_t begin = 0;
  while (begin <= type.size()) {
    const size_t bar = std::min(type.find('|', begin), type.size());
    choices.push_back(type.substr(begin, bar - begin));
    begin = bar + 1;
  }
  return choices;
}

std::vector<Flag> flags_of(const CLI::App& app) {
  std::vector<Flag> flags;
  for (const CLI::Option* option : app.get_options({})) {
    Flag flag{.names = {},
              .choices = split_choices(option->get_type_name()),
              .description = option->get_description(),
              .takes_value = option->get_expected_max() > 0};
    for (const std::string& name : option->get_lnames()) flag.names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) flag.names.push_back("-" + name);
    if (!flag.names.empty()) flags.push_back(std::move(flag));
  }
  return flags;
}

/// Words that may follow a command that takes a word of a list ("bash|zsh|fish").
std::vector<std::string> argument_choices(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options({})) {
    if (option->get_lnames().empty() && option->get_snames().empty()) return split_choices(option->get_type_name());
  }
  return {};
}

std::vector<std::string> names_of(const std::vector<Flag>& flags) {
  std::vector<std::string> names;
  for (const Flag& flag : flags) names.insert(names.end(), flag.names.begin(), flag.names.end());
  return names;
}

std::vector<Flag> all_flags(const CLI::App& root, const CLI::App& command) {
  std::vector<Flag> flags = flags_of(command);
  for (Flag& flag : flags_of(root)) {
    if (flag.names.front() != "--help" && flag.names.front() != "--version") flags.push_back(std::move(flag));
  }
  return flags;
}

std::vector<std::string> command_names(const CLI::App& root) {
  std::vector<std::string> names;
  for (const CLI::App* command : root.get_subcommands({})) names.push_back(command->get_name());
  return names;
}

std::string bash_script(const CLI::App& root) {
  std::string cases;
  for (const CLI::App* command : root.get_subcommands({})) {
    const auto flags = all_flags(root, *command);
    cases += fmt::format("    {})\n      case \"$previous\" in\n", command->get_name());
    for (const Flag& flag : flags) {
      if (flag.choices.empty()) continue;
      cases += fmt::format("        {}) words=\"{}\" ;;\n", fmt::join(flag.names, "|"), fmt::join(flag.choices, " "));
    }
    const auto arguments = argument_choices(*command);
    cases += fmt::format("        *) words=\"{}\"; [[ $current == -* ]] && words=\"{}\" ;;\n      esac ;;\n",
                         fmt::join(arguments, " "), fmt::join(names_of(flags), " "));
  }
  return fmt::format(R"(# bash completion of cinch: put it into ~/.local/share/bash-completion/completions/cinch
_cinch() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command= words= word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    if [[ $word != -* ]]; then command=$word; break; fi
  done
  case "$command" in
{}    *) words="{} {}" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _cinch cinch
)",
                     cases, fmt::join(command_names(root), " "), fmt::join(names_of(flags_of(root)), " "));
}

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

std::string zsh_description(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

std::string zsh_script(const CLI::App& root) {
  std::string list, cases;
  for (const CLI::App* command : root.get_subcommands({})) {
    list += fmt::format("    {}\n", quoted(command->get_name() + ":" + zsh_description(command->get_description())));
    cases += fmt::format("    {})\n      _arguments", command->get_name());
    for (const Flag& flag : all_flags(root, *command)) {
      std::string action;
      if (flag.takes_value)
        action = flag.choices.empty() ? ":value:_files" : fmt::format(":value:({})", fmt::join(flag.choices, " "));
      for (const std::string& name : flag.names) {
        cases += " \\\n        " + quoted(fmt::format("{}[{}]{}", name, zsh_description(flag.description), action));
      }
    }
    const auto arguments = argument_choices(*command);
    cases += " \\\n        " +
             quoted(arguments.empty() ? "*:path:_files" : fmt::format("*:value:({})", fmt::join(arguments, " "))) +
             " ;;\n";
  }
  return fmt::format(R"(#compdef cinch
# zsh completion of cinch: put it as _cinch into a folder of $fpath
_cinch() {{
  local -a commands
  commands=(
{}  )
  if (( CURRENT == 2 )); then _describe command commands; return; fi
  local command=$words[2]
  shift words; (( CURRENT-- ))
  case $command in
{}  esac
}}
_cinch "$@"
)",
                     list, cases);
}

std::string fish_flag(const std::string& condition, const Flag& flag) {
  std::string line = fmt::format("complete -c cinch -n {}", quoted(condition));
  for (const std::string& name : flag.names)
    line += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
  if (flag.takes_value)
    line += flag.choices.empty() ? " -r"
                                 : fmt::format(" -x -a {}", quoted(fmt::format("{}", fmt::join(flag.choices, " "))));
  return line + " -d " + quoted(flag.description) + "\n";
}

std::string fish_script(const CLI::App& root) {
  std::string text = "# fish completion of cinch: put it into ~/.config/fish/completions/cinch.fish\n";
  for (const CLI::App* command : root.get_subcommands({})) {
    text += fmt::format("complete -c cinch -n __fish_use_subcommand -f -a {} -d {}\n", command->get_name(),
                        quoted(command->get_description()));
  }
  for (const CLI::App* command : root.get_subcommands({})) {
    const std::string condition = "__fish_seen_subcommand_from " + command->get_name();
    for (const Flag& flag : flags_of(*command)) text += fish_flag(condition, flag);
    const auto arguments = argument_choices(*command);
    if (!arguments.empty()) {
      text += fmt::format("complete -c cinch -n {} -f -a {}\n", quoted(condition),
                          quoted(fmt::format("{}", fmt::join(arguments, " "))));
    }
  }
  for (const Flag& flag : flags_of(root)) text += fish_flag("true", flag);
  return text;
}

}  // namespace

Command completion_command() {
  return {"completion", [](CLI::App& app) {
            auto shell = std::make_shared<std::string>();
            CLI::App* command = app.add_subcommand("completion", "Print the completion script of a shell");
            command->add_option("SHELL", *shell, "The shell")->required()->type_name("bash|zsh|fish");
            command->callback([shell, &app] {
              require_choice("SHELL", *shell, {"bash", "zsh", "fish"});
              print(*shell == "bash" ? bash_script(app) : *shell == "zsh" ? zsh_script(app) : fish_script(app));
            });
          }};
}

}  // namespace cinch
