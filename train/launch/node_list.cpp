#include "train/launch/node_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr size_t kMostNodes = 65536;

class Reader {
 public:
  Reader(const std::string& variable, std::string_view text, const char* example)
      : variable_(variable), whole_(text), rest_(text), example_(example) {}

  bool at_end() const { return rest_.empty(); }
  bool skip(std::string_view what) {
    if (rest_.substr(0, what.size()) != what) return false;
    rest_.remove_prefix(what.size());
    return true;
  }
  void expect(std::string_view what) {
    if (!skip(what)) fail();
  }
  /// Up to one of `ends` or the end of the text.
  std::string take_until(std::string_view ends) {
    const std::string_view taken = rest_.substr(0, rest_.find_first_of(ends));
    rest_.remove_prefix(taken.size());
    return std::string(taken);
  }
  /// At least one digit, as written.
  std::string take_digits() {
    const auto end = std::find_if(rest_.begin(), rest_.end(), [](char c) { return c < '0' || c > '9'; });
    const std::string taken(rest_.begin(), end);
    if (taken.empty() || taken.size() > 9) fail();
    rest_.remove_prefix(taken.size());
    return taken;
  }
  [[noreturn]] void fail() const {
    throw UsageError(fmt::format("{}={}: expected a list such as {}", variable_, whole_, example_),
                     "start cinch as a step of the job (srun cinch ...), which sets this variable");
  }
  void require_few(size_t items) const {
    if (items <= kMostNodes) return;
    throw UsageError(fmt::format("{}={}: more than {} nodes", variable_, whole_, kMostNodes));
  }

 private:
  const std::string& variable_;
  std::string_view whole_, rest_;
  const char* example_;
};

/// What stands in brackets: "01-03,07" -> 01 02 03 07.
std::vector<std::string> bracket(Reader& reader) {
  std::vector<std::string> numbers;
  do {
    const std::string first = reader.take_digits();
    const std::string last = reader.skip("-") ? reader.take_digits() : first;
    const int from = std::stoi(first), to = std::stoi(last);
    if (to < from) reader.fail();
    reader.require_few(static_cast<size_t>(to - from) + 1);
    for (int i = from; i <= to; ++i) numbers.push_back(fmt::format("{:0{}}", i, first.size()));
  } while (reader.skip(","));
  reader.expect("]");
  return numbers;
}

}  // namespace

std::vector<std::string> expand_node_list(const std::string& variable, const std::string& text) {
  Reader reader(variable, text, "gpu[01-03,07],x5");
  std::vector<std::string> nodes;
  do {
    std::vector<std::string> names = {reader.take_until(",[]")};
    while (reader.skip("[")) {
      const std::vector<std::string> numbers = bracket(reader);
      const std::string tail = reader.take_until(",[]");
      reader.require_few(names.size() * numbers.size());
      std::vector<std::string> longer;
      for (const std::string& name : names) {
        for (const std::string& number : numbers) longer.push_back(name + number + tail);
      }
      names = std::move(longer);
    }
    if (names.front().empty()) reader.fail();
    nodes.insert(nodes.end(), names.begin(), names.end());
    reader.require_few(nodes.size());
  } while (reader.skip(","));
  if (!reader.at_end()) reader.fail();
  return nodes;
}

std::vector<int> expand_tasks_per_node(const std::string& variable, const std::string& text) {
  Reader reader(variable, text, "2(x3),1");
  std::vector<int> tasks;
  do {
    const int count = std::stoi(reader.take_digits());
    int nodes = 1;
    if (reader.skip("(x")) {
      nodes = std::stoi(reader.take_digits());
      reader.expect(")");
    }
    reader.require_few(tasks.size() + static_cast<size_t>(nodes));
    tasks.insert(tasks.end(), static_cast<size_t>(nodes), count);
  } while (reader.skip(","));
  if (!reader.at_end()) reader.fail();
  return tasks;
}

}  // namespace cinch
