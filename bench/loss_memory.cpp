// Memory and time of the loss in chunks (train/linear_cross_entropy_kd) beside the plain operations: logits of all
// tokens, log-softmax, cross entropy and KL, autograd. Each runs in a process of its own, so that its peak is its own.
//
//   loss_memory [TOKENSxVOCABULARYxHIDDEN ...] [--dtype f32|bf16] [--head] [--repeats N] [--chunk MIB] [--device cuda]
//
// --head trains the head too. Bytes are what a process holds at its worst moment beyond the inputs (VmHWM of
// /proc/self/status, on CUDA what LibTorch has allocated); seconds the best of N, forward and backward. Then what the
// formula (train/planning/loss_bytes) gives for 8192 tokens and 128k words, beside what Liger-Kernel publishes for its
// operations.
#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "core/errors.h"
#include "core/plugin.h"
#include "train/linear_cross_entropy_kd.h"
#include "train/planning/loss_bytes.h"

using namespace cinch;

namespace {

struct Setting {
  int64_t tokens = 0, vocabulary = 0, hidden = 0;
  bool bf16 = false, head = false, teacher = true, cuda = false;
  int repeats = 3;
  int64_t chunk = 256;  // MiB
};

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// "VmRSS" or "VmHWM" of this process.
int64_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(line.find_first_of("0123456789"))) * 1024;
  }
  throw Error("/proc/self/status has no " + key);
}

void forget_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5";
  file.flush();
  if (!file) throw Error("/proc/self/clear_refs cannot be written");
}

at::Tensor plain_loss(const LossInputs& in) {
  const at::Tensor student = at::log_softmax(at::linear(in.hidden, in.head).to(at::kFloat), 1);
  at::Tensor loss = at::nll_loss(student, in.targets);
  if (in.teacher_hidden.defined()) {
    const at::Tensor teacher = at::log_softmax(at::linear(in.teacher_hidden, in.teacher_head).to(at::kFloat), 1);
    loss = loss + at::kl_div(student, teacher, at::Reduction::Sum, /*log_target=*/true) / in.hidden.size(0);
  }
  return loss;
}

/// Bytes of this process that tensors take: now, and at its worst moment since reset().
class Memory {
 public:
  explicit Memory(bool cuda) : cuda_(cuda) {}
  void reset() const { cuda_ ? c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(0) : forget_peak(); }
  int64_t now() const { return cuda_ ? of_device().current : status_bytes("VmRSS"); }
  int64_t peak() const { return cuda_ ? of_device().peak : status_bytes("VmHWM"); }
  void wait() const {
    if (cuda_) at::accelerator::synchronizeDevice(0);
  }

 private:
  static c10::CachingAllocator::Stat of_device() {
    return c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0).allocated_bytes[0];  // of all pools
  }
  bool cuda_;
};

/// In the child: prints bytes and seconds.
void measure(const Setting& setting, bool chunks) {
  if (setting.cuda) load_cuda_plugin();
  at::manual_seed(1);
  const at::Device device(setting.cuda ? at::kCUDA : at::kCPU);
  const at::ScalarType type = setting.bf16 ? at::kBFloat16 : at::kFloat;
  const auto random = [&](int64_t rows) {
    return at::randn({rows, setting.hidden}, at::TensorOptions(device)).mul_(0.05).to(type);
  };
  LossInputs inputs{
      .hidden = random(setting.tokens),
      .head = random(setting.vocabulary),
      .teacher_hidden = {},
      .teacher_head = {},
      .targets = at::randint(setting.vocabulary, {setting.tokens}, at::TensorOptions(at::kLong).device(device))};
  if (setting.teacher) {
    inputs.teacher_hidden = random(setting.tokens);
    inputs.teacher_head = random(setting.vocabulary);
  }
  inputs.hidden.requires_grad_(true);
  inputs.head.requires_grad_(setting.head);
  const double teacher = setting.teacher ? 1 : 0;
  const LossOptions options = {.weights = {1.0, teacher}, .chunk_bytes = setting.chunk << 20};
  const Memory memory(setting.cuda);
  double best = 1e30;
  memory.reset();
  memory.wait();
  const int64_t before = memory.now();
  for (int i = 0; i < setting.repeats; ++i) {
    const double start = seconds();
    (chunks ? linear_cross_entropy_kd(inputs, options).total : plain_loss(inputs)).backward();
    memory.wait();
    best = std::min(best, seconds() - start);
    inputs.hidden.mutable_grad() = at::Tensor();
    inputs.head.mutable_grad() = at::Tensor();
  }
  std::cout << memory.peak() - before << " " << best << std::endl;
}

struct Result {
  double gigabytes = 0, seconds = 0;
};

Result in_a_process(const Setting& setting, bool chunks) {
  int pipe_ends[2];
  if (::pipe(pipe_ends) != 0) throw Error("cannot make a pipe");
  std::cout.flush();
  const std::string sizes = fmt::format("{}x{}x{}", setting.tokens, setting.vocabulary, setting.hidden);
  const std::string repeats = std::to_string(setting.repeats), chunk = std::to_string(setting.chunk);
  std::vector<const char*> argv = {"loss_memory", "--child",    chunks ? "chunks" : "plain",
                                   sizes.c_str(), "--repeats",  repeats.c_str(),
                                   "--chunk",     chunk.c_str()};
  if (setting.cuda) argv.insert(argv.end(), {"--device", "cuda"});
  if (setting.bf16) argv.insert(argv.end(), {"--dtype", "bf16"});
  if (setting.head) argv.push_back("--head");
  if (!setting.teacher) argv.push_back("--no-teacher");
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(pipe_ends[1], 1);
    ::close(pipe_ends[0]);
    ::execv("/proc/self/exe", const_cast<char**>(argv.data()));
    ::_exit(127);
  }
  ::close(pipe_ends[1]);
  std::string text(256, '\0');
  const ssize_t count = ::read(pipe_ends[0], text.data(), text.size());
  ::close(pipe_ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  // A process that the system ends for its memory says nothing.
  if (status != 0 || count <= 0) return {.gigabytes = -1, .seconds = -1};
  text.resize(static_cast<size_t>(count));
  const size_t space = text.find(' ');
  return {.gigabytes = std::stod(text.substr(0, space)) / 1e9, .seconds = std::stod(text.substr(space))};
}

void compare(const Setting& setting) {
  const Result chunks = in_a_process(setting, true), plain = in_a_process(setting, false);
  const double formula = static_cast<double>(loss_bytes({.tokens = setting.tokens,
                                                         .vocabulary = setting.vocabulary,
                                                         .hidden_size = setting.hidden,
                                                         .compute_bytes = setting.bf16 ? 2 : 4,
                                                         .teacher = setting.teacher,
                                                         .trains_head = setting.head,
                                                         .on_cpu = !setting.cuda,
                                                         .chunk_bytes = setting.chunk << 20})) /
                         1e9;
  const std::string sizes = fmt::format("{} x {} x {}", setting.tokens, setting.vocabulary, setting.hidden);
  std::cout << fmt::format("{:<22} {:>9.2f} {:>9.2f} {:>9.2f} {:>7.1f} {:>10.3f} {:>10.3f} {:>7.2f}\n", sizes, formula,
                           chunks.gigabytes, plain.gigabytes, plain.gigabytes / chunks.gigabytes, chunks.seconds,
                           plain.seconds, plain.seconds / chunks.seconds)
            << std::flush;
}

/// Liger-Kernel's benchmark data (data/all_benchmark_data.csv of its repository): bf16, hidden 4096, vocabulary 128256,
/// H100; its numbers are everything that the benchmark's process has allocated, heads and their gradients among it.
void print_large() {
  LossShape shape = {.tokens = 8192, .vocabulary = 128256, .hidden_size = 4096, .compute_bytes = 2};
  const double inputs = 2.0 * 2 * static_cast<double>((shape.tokens + shape.vocabulary) * shape.hidden_size) / 1e9;
  const double without = static_cast<double>(loss_bytes(shape)) / 1e9;
  shape.trains_head = true;
  const double with = static_cast<double>(loss_bytes(shape)) / 1e9;
  std::cout << fmt::format(
      "\n8192 tokens x 128256 words x hidden 4096, bf16, by the formula: {:.2f} GB beyond the inputs ({:.2f} GB); with "
      "the head trained {:.2f} GB, all together {:.2f} GB.\nLiger-Kernel, H100, all together: distillation with cross "
      "entropy 68.9 GB plain, 11.1 GB in chunks (6.2 times less); linear + JSD 56.4 and 8.7 GB (6.5 times).\n",
      without, inputs, with, inputs + with);
}

Setting parse_sizes(Setting setting, const std::string& text) {
  const size_t a = text.find('x'), b = text.rfind('x');
  if (a == std::string::npos || a == b) throw UsageError(text + ": expected TOKENSxVOCABULARYxHIDDEN");
  setting.tokens = std::stoll(text.substr(0, a));
  setting.vocabulary = std::stoll(text.substr(a + 1, b - a - 1));
  setting.hidden = std::stoll(text.substr(b + 1));
  return setting;
}

int run(const std::vector<std::string>& arguments) {
  Setting setting;
  std::string child;
  std::vector<std::string> sizes;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto value = [&] {
      if (i + 1 == arguments.size()) throw UsageError(arguments[i] + " needs a value");
      return arguments[++i];
    };
    if (arguments[i] == "--child") {
      child = value();
    } else if (arguments[i] == "--dtype") {
      setting.bf16 = value() == "bf16";
    } else if (arguments[i] == "--head") {
      setting.head = true;
    } else if (arguments[i] == "--no-teacher") {
      setting.teacher = false;
    } else if (arguments[i] == "--device") {
      setting.cuda = value() == "cuda";
    } else if (arguments[i] == "--chunk") {
      setting.chunk = std::stoll(value());
    } else if (arguments[i] == "--repeats") {
      setting.repeats = std::stoi(value());
    } else {
      sizes.push_back(arguments[i]);
    }
  }
  if (!child.empty()) {
    measure(parse_sizes(setting, sizes.at(0)), child == "chunks");
    return 0;
  }
  if (sizes.empty()) sizes = {"1024x32768x576", "1024x49152x576", "1024x131072x576", "2048x131072x576"};
  std::cout << fmt::format("{}, {}, {}, {}\n\n", setting.bf16 ? "bf16" : "f32",
                           setting.cuda ? "CUDA" : fmt::format("{} threads", at::get_num_threads()),
                           setting.teacher ? "KL + cross entropy" : "cross entropy",
                           setting.head ? "head trained" : "head frozen")
            << fmt::format("{:<22} {:>9} {:>9} {:>9} {:>7} {:>10} {:>10} {:>7}\n", "tokens x words x E", "formula GB",
                           "chunks", "plain", "ratio", "chunks s", "plain s", "ratio");
  for (const std::string& text : sizes) compare(parse_sizes(setting, text));
  print_large();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
