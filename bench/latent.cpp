// Quality of latent attention on token windows read from raw int32 files, one line per setting: for measuring a method
// without the program around it. Two passes over the model: moments of every layer; then layer by layer the fits, on
// the original and the converted stream. Settings share the first pass and the original's streams.
//
//   latent MODEL CALIBRATION.bin WINDOW CALIBRATION_WINDOWS VALIDATION TEST.bin[,TEST.bin...]
//   TEST_WINDOWS[,TEST_WINDOWS...] SETTING [SETTING ...]
//
// A SETTING is R+Dr[:key=value...]: method=weighted|balanced-pca|weight-svd, slots=portable|native,
// refit=on|off|drift, query=on|off, lambdas=a/b/c, damping=X, positions=N, steps=N, tail=X, context=N, fold=N,
// bias=0|1. VALIDATION of the calibration windows, evenly spread, choose the lambda. Prints perplexity, KL to the
// original and top-1 agreement with standard errors over windows.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

#include "convert/solvers/joint_pca.h"
#include "convert/solvers/latent_fit.h"
#include "convert/solvers/latent_output_refit.h"
#include "convert/solvers/latent_query_refit.h"
#include "core/errors.h"
#include "model/decoder_model.h"

using namespace cinch;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Seconds per phase, over all layers and settings.
std::map<std::string, double> spent;

class Phase {
 public:
  explicit Phase(std::string name) : name_(std::move(name)) {}
  ~Phase() { spent[name_] += seconds() - start_; }

 private:
  std::string name_;
  double start_ = seconds();
};

std::vector<std::string> split(const std::string& text, char mark) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, mark);) parts.push_back(part);
  return parts;
}

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

struct Setting {
  std::string text, method = "weighted";
  int64_t rank = 0, rotary = 0, positions = 96, fold = 4;
  bool portable = true, query_refit = true, output_refit = true;
  double damping = 1.0;
  int steps = 15;
  LagLaw law;
  LatentOutputOptions output;

  explicit Setting(const std::string& description) : text(description) {
    const auto parts = split(description, ':');
    const auto sizes = split(parts.at(0), '+');
    rank = std::stoll(sizes.at(0));
    rotary = std::stoll(sizes.at(1));
    for (size_t i = 1; i < parts.size(); ++i)
      set(parts[i].substr(0, parts[i].find('=')), parts[i].substr(parts[i].find('=') + 1));
  }

 private:
  void set(const std::string& key, const std::string& value) {
    if (key == "method") {
      method = value;
      if (method != "weighted") query_refit = output_refit = false;
    } else if (key == "slots") {
      portable = value == "portable";
    } else if (key == "refit") {
      output_refit = value != "off";
      output.follow_drift = value == "drift";
    } else if (key == "query") {
      query_refit = value == "on";
    } else if (key == "lambdas") {
      output.lambdas.clear();
      for (const std::string& x : split(value, '/')) output.lambdas.push_back(std::stod(x));
    } else if (key == "damping") {
      damping = std::stod(value);
    } else if (key == "positions") {
      positions = std::stoll(value);
    } else if (key == "steps") {
      steps = std::stoi(value);
    } else if (key == "tail") {
      law.tail = std::stod(value);
    } else if (key == "context") {
      law.context = std::stoll(value);
    } else if (key == "fold") {
      fold = std::stoll(value);
    } else if (key == "bias") {
      output.bias = value == "1";
    } else {
      throw UsageError("unknown key " + key);
    }
  }
};

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

struct TestText {
  std::string name;
  at::Tensor windows;
  LayerStream teacher;
};

/// One setting on its way through the layers.
struct Student {
  Setting setting;
  at::Tensor calibration;         // (W, T, E)
  std::vector<at::Tensor> tests;  // per text
  std::vector<RotarySlot> shared_slots;
};

LayerProblem layer_problem(const ModelConfig& config, int64_t l, const DecoderLayer& layer, const at::Tensor& teacher,
                           const WindowRoles& roles) {
  LayerProblem problem;
  problem.layer = l;
  problem.source = problem.target = config.layers[l];
  problem.weights = layer.grouped_query_attention().weights();
  problem.teacher = teacher;
  problem.windows = roles;
  problem.attention_input = [&layer](const at::Tensor& h) { return layer.attention_input(h); };
  problem.attention_residual = [&layer](const at::Tensor& y) { return layer.attention_residual(y); };
  return problem;
}

RotarySurvey survey(const Setting& setting, const SourceHeads& heads, const LatentMoments& moments) {
  const bool full = setting.rotary == heads.spec.n_kv_heads * heads.spec.head_dim;
  return RotarySurvey(heads, moments, plane_groups(heads.planes, full), setting.law);
}

LatentMaps weighted_maps(const Student& student, const HeadStream& stream, const SourceHeads& heads,
                         const LatentMoments& moments) {
  const Setting& setting = student.setting;
  const RotarySurvey own = survey(setting, heads, moments);
  const RotaryMaps rotary = own.maps(setting.portable ? student.shared_slots : choose_slots({&own}, setting.rotary));
  const LatentBasis basis = latent_basis(latent_spectrum(heads, moments, rotary), setting.rank);
  const Phase phase("up-maps");
  return latent_maps(heads, rotary, basis, up_map_moments(stream, heads, rotary, basis));
}

LatentMaps first_maps(const Student& student, const HeadStream& stream, const SourceHeads& heads,
                      const LatentMoments& moments) {
  const Setting& s = student.setting;
  if (s.method == "weighted") return weighted_maps(student, stream, heads, moments);
  const at::Tensor gram = s.method == "balanced-pca" ? activation_gram(moments) : weight_gram(heads);
  const RotaryMaps rotary = folded_rotary_maps(heads, gram, s.rotary, s.fold);
  return latent_maps(heads, rotary, joint_pca(heads, gram, rotary, s.rank, s.method == "balanced-pca"));
}

void advance(at::Tensor& hidden, const DecoderLayer& layer, const HeadStream& stream, const LatentForward& attention) {
  for (int64_t w = 0; w < hidden.size(0); ++w) {
    const at::Tensor y = attention.output(attention.head_outputs(stream.input(hidden[w])));
    hidden[w].copy_(layer.add_mlp(layer.add_attention(hidden[w], y)));
  }
}

void convert_layer(Student& student, LayerProblem& problem, const LatentMoments& moments, const DecoderLayer& layer) {
  const Setting& setting = student.setting;
  problem.student = student.calibration;
  const SourceHeads heads = source_heads(problem);
  const HeadStream stream(problem, heads);
  LatentMaps maps = first_maps(student, stream, heads, moments);
  at::Tensor before, after;
  if (setting.query_refit) {
    const Phase phase("query refit");
    const LatentQueryProblem refit(stream, heads, maps, setting.positions);
    const at::Tensor query = refit.solve(setting.steps, setting.damping);
    before = refit.loss(maps.query).sum();
    after = refit.loss(query).sum();
    maps.query = query;
  }
  LatentOutputRefit refit;
  if (setting.output_refit) {
    const Phase phase("output refit");
    refit = refit_latent_output(problem, stream, heads, setting.output, maps);
  }
  std::string line = fmt::format("layer {:2d} {}  kept K {:.3f} V {:.3f}", problem.layer, setting.text,
                                 maps.kept_energy_k, maps.kept_energy_v);
  if (before.defined()) line += fmt::format("  query refit x {:.3f}", (after / before).item<double>());
  std::cerr << line << fmt::format("  lambda {} loss {:.4f}\n", refit.lambda, refit.loss);
  const Phase phase("converted streams");
  const LatentForward attention(stream, heads, maps);
  if (setting.output_refit) advance(student.calibration, layer, stream, attention);
  for (at::Tensor& test : student.tests) advance(test, layer, stream, attention);
}

void report(const TestText& text, const std::vector<Student>& students, size_t index) {
  for (const Student& student : students) {
    Statistic nll, kl, agree, own;
    for (int64_t w = 0; w < text.windows.size(0); ++w) {
      const at::Tensor before = at::log_softmax(text.teacher.trunk().logits(text.teacher.hidden()[w]), -1);
      const at::Tensor after = at::log_softmax(text.teacher.trunk().logits(student.tests[index][w]), -1);
      kl.add((before.exp() * (before - after)).sum(-1).mean().item<double>());
      agree.add((before.argmax(-1) == after.argmax(-1)).to(at::kDouble).mean().item<double>());
      const at::Tensor next = text.windows[w].slice(0, 1).unsqueeze(1);
      nll.add(-after.slice(0, 0, -1).gather(1, next).mean().item<double>());
      own.add(-before.slice(0, 0, -1).gather(1, next).mean().item<double>());
    }
    fmt::print("{:<44} {:<12} ppl {:.2f} +- {:.2f} (original {:.2f})  KL {:.4f} +- {:.4f}  top1 {:.2f} +- {:.2f}\n",
               student.setting.text, text.name, std::exp(nll.mean()), std::exp(nll.mean()) * nll.error(),
               std::exp(own.mean()), kl.mean(), kl.error(), 100 * agree.mean(), 100 * agree.error());
  }
}

/// First pass. Shared slots of each student come from the surveys of all layers.
std::vector<LatentMoments> survey_model(const std::shared_ptr<ModelSource>& source, LayerStream& teacher,
                                        const WindowRoles& roles, std::vector<Student>& students) {
  std::vector<LatentMoments> moments;
  std::vector<std::vector<RotarySurvey>> surveys(students.size());
  while (!teacher.done()) {
    const DecoderLayer layer = teacher.load_layer();
    const LayerProblem problem = layer_problem(source->config(), teacher.layer(), layer, teacher.hidden(), roles);
    const SourceHeads heads = source_heads(problem);
    {
      const Phase phase("moments");
      moments.push_back(latent_moments(HeadStream(problem, heads), heads));
    }
    for (size_t i = 0; i < students.size(); ++i) {
      if (students[i].setting.method == "weighted" && students[i].setting.portable)
        surveys[i].push_back(survey(students[i].setting, heads, moments.back()));
    }
    const Phase phase("original streams");
    teacher.advance(layer);
  }
  for (size_t i = 0; i < students.size(); ++i) {
    std::vector<const RotarySurvey*> layers;
    for (const RotarySurvey& layer : surveys[i]) layers.push_back(&layer);
    if (!layers.empty()) students[i].shared_slots = choose_slots(layers, students[i].setting.rotary);
  }
  return moments;
}

WindowRoles roles_of(int64_t windows, int64_t validation) {
  WindowRoles roles;  // nothing is held out: this program measures on texts of its own
  for (int64_t i = 0; i < validation; ++i) roles.validation.push_back((2 * i + 1) * windows / (2 * validation));
  for (int64_t w = 0; w < windows; ++w) {
    if (!std::binary_search(roles.validation.begin(), roles.validation.end(), w)) roles.fit.push_back(w);
  }
  return roles;
}

void run(const std::vector<std::string>& args) {
  const auto source = ModelSource::open(args.at(1));
  const int64_t length = std::stoll(args.at(3));
  const at::Tensor calibration = read_windows(args.at(2), length, std::stoll(args.at(4)));
  const WindowRoles roles = roles_of(calibration.size(0), std::stoll(args.at(5)));
  std::vector<TestText> texts;
  const auto files = split(args.at(6), ','), counts = split(args.at(7), ',');
  for (size_t i = 0; i < files.size(); ++i) {
    const at::Tensor windows = read_windows(files[i], length, std::stoll(counts.at(counts.size() > 1 ? i : 0)));
    const size_t slash = files[i].rfind('/');
    texts.push_back({slash == std::string::npos ? files[i] : files[i].substr(slash + 1), windows,
                     LayerStream(source, windows, {})});
  }
  LayerStream first(source, calibration, {}), teacher(source, calibration, {});
  std::vector<Student> students;
  for (size_t i = 8; i < args.size(); ++i) {
    students.push_back({Setting(args[i]), teacher.hidden().clone(), {}, {}});
    for (const TestText& text : texts) students.back().tests.push_back(text.teacher.hidden().clone());
  }
  const std::vector<LatentMoments> moments = survey_model(source, first, roles, students);
  while (!teacher.done()) {
    const int64_t l = teacher.layer();
    const DecoderLayer layer = teacher.load_layer();
    LayerProblem problem = layer_problem(source->config(), l, layer, teacher.hidden(), roles);
    for (Student& student : students) convert_layer(student, problem, moments[l], layer);
    const Phase phase("original streams");
    teacher.advance(layer);
    for (TestText& text : texts) text.teacher.advance(layer);
  }
  for (size_t i = 0; i < texts.size(); ++i) report(texts[i], students, i);
  for (const auto& [phase, time] : spent) fmt::print("{:<20} {:.1f} s\n", phase, time);
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
