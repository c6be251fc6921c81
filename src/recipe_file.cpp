#include "src/recipe_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <sstream>

#include "core/errors.h"
#include "core/json.h"

namespace cinch {
namespace {

std::string normalised(std::string key) {
  std::transform(key.begin(), key.end(), key.begin(),
                 [](unsigned char c) { return c == '_' ? '-' : static_cast<char>(std::tolower(c)); });
  return key;
}

const CLI::Option* option_of_key(const CLI::App& command, const std::string& key) {
  for (const CLI::Option* option : command.get_options([](const CLI::Option* o) { return o->get_configurable(); })) {
    if (normalised(recipe_key(*option)) == normalised(key)) return option;
  }
  return nullptr;
}

std::vector<std::string> known_keys(const CLI::App& command) {
  std::vector<std::string> keys;
  for (const CLI::Option* option : command.get_options([](const CLI::Option* o) { return o->get_configurable(); })) {
    keys.push_back(recipe_key(*option));
  }
  return keys;
}

bool is_number_or_bool(const std::string& text) {
  if (text == "true" || text == "false") return true;
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  return !text.empty() && end == text.c_str() + text.size();
}

std::string toml_value(const std::string& text) {
  if (is_number_or_bool(text)) return text;
  const char quote = text.find('"') == std::string::npos ? '"' : '\'';
  return quote + text + quote;
}

/// Of the default of a list, which CLI11 writes with blanks or as [a,b].
std::vector<std::string> words(std::string list) {
  std::replace_if(
      list.begin(), list.end(), [](char c) { return c == '[' || c == ']' || c == ','; }, ' ');
  std::istringstream stream(list);
  return {std::istream_iterator<std::string>(stream), {}};
}

}  // namespace

std::string recipe_key(const CLI::Option& option) {
  if (!option.get_lnames().empty()) return option.get_lnames().front();
  if (!option.get_snames().empty()) return option.get_snames().front();
  return normalised(option.get_name(true));
}

std::vector<CLI::ConfigItem> RecipeFormat::from_config(std::istream& input) const {
  const auto parsed = app_->get_subcommands();
  if (parsed.empty()) return {};
  const CLI::App& command = *parsed.front();
  std::vector<CLI::ConfigItem> keys = CLI::ConfigBase::from_config(input);
  for (CLI::ConfigItem& item : keys) {
    const CLI::Option* option = item.parents.empty() ? option_of_key(command, item.name) : nullptr;
    if (option == nullptr) {
      const std::string nearest = nearest_word(normalised(item.name), known_keys(command));
      throw UsageError(
          fmt::format("recipe: unknown key \"{}\" for `cinch {}`", item.fullname(), command.get_name()),
          nearest.empty() ? fmt::format("`cinch {} --help` lists the options; each is a recipe key", command.get_name())
                          : fmt::format("did you mean \"{}\"?", nearest));
    }
    item.parents = {command.get_name()};
    item.name =
        option->get_lnames().empty() && option->get_snames().empty() ? option->get_name(true) : recipe_key(*option);
  }
  return keys;
}

std::string recipe_of(const CLI::App& command) {
  std::string text = fmt::format("# cinch {}\n", command.get_name());
  for (const CLI::Option* option : command.get_options([](const CLI::Option* o) { return o->get_configurable(); })) {
    const bool takes_list = option->get_expected_max() > 1;
    std::vector<std::string> values = option->reduced_results();
    if (option->count() == 0) {
      if (option->get_expected_max() == 0) {
        // A flag that can be given both ways means something else when it is not given.
        if (!option->get_fnames().empty()) continue;
        values = {"false"};
      } else if (!option->get_default_str().empty()) {
        values = takes_list ? words(option->get_default_str()) : std::vector{option->get_default_str()};
      } else {
        continue;
      }
    }
    std::string joined;
    for (const std::string& value : values) joined += (joined.empty() ? "" : ", ") + toml_value(value);
    text +=
        fmt::format("{} = {}\n", recipe_key(*option), takes_list && values.size() != 1 ? "[" + joined + "]" : joined);
  }
  return text;
}

}  // namespace cinch
