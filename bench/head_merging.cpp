// Quality of head merging on token windows read from raw int32 files, one line per setting: for measuring a method
// without the program around it.
//
//   head_merging MODEL CALIBRATION.bin WINDOW CALIBRATION_WINDOWS VALIDATION TEST.bin[,TEST.bin...] TEST_WINDOWS METHOD
//   HEADS [key=value ...]
//
// VALIDATION of the calibration windows, evenly spread, choose groups and dampings. Keys: refit=on|off|auto,
// lambdas=a:b:c, fisher=N, groups=0|1, tail=X, lag=N. Prints perplexity, KL to the original and top-1 agreement with
// standard errors over windows.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <sstream>

#include "convert/transform.h"
#include "core/errors.h"
#include "model/decoder_model.h"

using namespace cinch;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

at::Tensor read_windows(const std::string& path, int64_t length, int64_t count) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UsageError(path + ": cannot be read");
  std::vector<int32_t> ids;
  int32_t id = 0;
  while (static_cast<int64_t>(ids.size()) < length * count && file.read(reinterpret_cast<char*>(&id), sizeof id))
    ids.push_back(id);
  const int64_t windows = static_cast<int64_t>(ids.size()) / length;
  ids.resize(static_cast<size_t>(windows * length));
  return at::tensor(ids, at::kInt).to(at::kLong).reshape({windows, length});
}

std::vector<std::string> split(const std::string& text, char mark) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, mark);) parts.push_back(part);
  return parts;
}

void set_option(ConversionRecipe& recipe, const std::string& key, const std::string& value) {
  if (key == "refit") {
    recipe.refit = value == "on" ? RefitMode::on : value == "off" ? RefitMode::off : RefitMode::automatic;
  } else if (key == "lambdas") {
    recipe.refit_lambdas.clear();
    for (const std::string& x : split(value, ':')) recipe.refit_lambdas.push_back(std::stod(x));
  } else if (key == "fisher") {
    recipe.fisher_rounds = std::stoll(value);
  } else if (key == "groups") {
    recipe.search_groups = value == "1";
  } else if (key == "tail") {
    recipe.lag_tail = std::stod(value);
  } else if (key == "lag") {
    recipe.lag_context = std::stoll(value);
  } else {
    throw UsageError("unknown key " + key);
  }
}

struct Statistic {
  double sum = 0, squares = 0, n = 0;
  void add(double x) {
    sum += x;
    squares += x * x;
    ++n;
  }
  double mean() const { return sum / n; }
  double error() const { return n > 1 ? std::sqrt(std::max(0.0, squares / n - mean() * mean()) / (n - 1)) : 0.0; }
};

void report(const std::string& name, const LayerStream& teacher, const std::vector<at::Tensor>& student,
            const at::Tensor& windows) {
  Statistic nll, kl, agree;
  for (int64_t w = 0; w < windows.size(0); ++w) {
    const at::Tensor before = at::log_softmax(teacher.trunk().logits(teacher.hidden()[w]), -1);
    const at::Tensor after = at::log_softmax(teacher.trunk().logits(student[0][w]), -1);
    kl.add((before.exp() * (before - after)).sum(-1).mean().item<double>());
    agree.add((before.argmax(-1) == after.argmax(-1)).to(at::kDouble).mean().item<double>());
    const at::Tensor next = windows[w].slice(0, 1).unsqueeze(1);
    nll.add(-after.slice(0, 0, -1).gather(1, next).mean().item<double>());
  }
  fmt::print("  {:<28} ppl {:.3f} +- {:.3f}  KL {:.4f} +- {:.4f}  top1 {:.2f}\n", name, std::exp(nll.mean()),
             std::exp(nll.mean()) * nll.error(), kl.mean(), kl.error(), 100 * agree.mean());
}

void run(const std::vector<std::string>& args) {
  const auto source = ModelSource::open(args.at(1));
  const int64_t length = std::stoll(args.at(3)), validation = std::stoll(args.at(5)), tests = std::stoll(args.at(7));
  const at::Tensor calibration = read_windows(args.at(2), length, std::stoll(args.at(4)));
  ConversionRecipe recipe;
  recipe.method = args.at(8);
  recipe.n_kv_heads = std::stoll(args.at(9));
  recipe.calibration_window = length;
  for (size_t i = 10; i < args.size(); ++i)
    set_option(recipe, args[i].substr(0, args[i].find('=')), args[i].substr(args[i].find('=') + 1));

  LayerStream teacher(source, calibration, {});
  at::Tensor student = teacher.hidden().clone();
  std::vector<LayerStream> test_teachers;
  std::vector<at::Tensor> test_windows, test_students;
  for (const std::string& path : split(args.at(6), ',')) {
    test_windows.push_back(read_windows(path, length, tests));
    test_teachers.emplace_back(source, test_windows.back(), LayerStream::Options{});
    test_students.push_back(test_teachers.back().hidden().clone());
  }
  WindowRoles roles;  // nothing is held out: this program measures on texts of its own
  for (int64_t i = 0; i < validation; ++i)
    roles.validation.push_back((2 * i + 1) * calibration.size(0) / (2 * validation));
  for (int64_t w = 0; w < calibration.size(0); ++w) {
    if (!std::binary_search(roles.validation.begin(), roles.validation.end(), w)) roles.fit.push_back(w);
  }
  const Transform& method = transform(recipe.method);
  double solving = 0;
  for (int64_t l = 0; l < source->config().n_layers; ++l) {
    const DecoderLayer layer = teacher.load_layer();
    LayerProblem problem;
    problem.layer = l;
    problem.source = source->config().layers[l];
    problem.target = method.target(problem.source, recipe);
    problem.weights = layer.grouped_query_attention().weights();
    problem.teacher = teacher.hidden();
    problem.student = student;
    problem.windows = roles;
    problem.attention_input = [&](const at::Tensor& h) { return layer.attention_input(h); };
    problem.attention_residual = [&](const at::Tensor& y) { return layer.attention_residual(y); };
    const double start = seconds();
    const LayerSolution solution = method.solve(problem, recipe);
    solving += seconds() - start;
    std::cerr << fmt::format("layer {:2d} {:.2f} s  kept K {:.3f} V {:.3f}  error {:.4f} -> {:.4f}  lambda {}\n", l,
                             seconds() - start, solution.kept_energy_k, solution.kept_energy_v,
                             solution.output_error_before_refit, solution.output_error, solution.refit_lambda);
    const DecoderLayer converted = layer.with_attention(make_attention(problem.target, solution.weights));
    const auto advance = [&](at::Tensor& h) {
      for (int64_t w = 0; w < h.size(0); ++w) h[w].copy_(converted.forward(h[w].unsqueeze(0)).squeeze(0));
    };
    advance(student);
    teacher.advance(layer);
    for (size_t i = 0; i < test_teachers.size(); ++i) {
      advance(test_students[i]);
      test_teachers[i].advance(layer);
    }
  }
  fmt::print("{} -> {} {} ({:.1f} s solving)\n", source->config().layers[0].n_kv_heads, recipe.n_kv_heads,
             recipe.method, solving);
  const auto names = split(args.at(6), ',');
  for (size_t i = 0; i < test_teachers.size(); ++i)
    report(names[i], test_teachers[i], {test_students[i]}, test_windows[i]);
}

}  // namespace

int main(int argc, char** argv) {
  const c10::InferenceMode inference;
  try {
    run(std::vector<std::string>(argv, argv + argc));
  } catch (const std::exception& error) {
    for (const std::string& line : describe_error(error).lines) std::cerr << line << "\n";
    return 1;
  }
  return 0;
}
