#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <fmt/format.h>

#include <chrono>
#include <fstream>
#include <memory>

#include "core/errors.h"
#include "core/files.h"
#include "core/plugin.h"
#include "core/progress.h"
#include "eval/bench/device_timer.h"
#include "src/bench_options.h"
#include "src/bench_output.h"
#include "src/command_list.h"
#include "src/device.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "train/planning/device_speed.h"

namespace cinch {
namespace {

constexpr int64_t kCopyBytesCpu = int64_t{256} << 20, kCopyBytesCuda = int64_t{1} << 30;
constexpr int64_t kRotations = 3;  // times the cache near the processor

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Value of a line "key : value", or the whole first line for an empty key.
std::string value_in(const char* file, const std::string& key) {
  std::ifstream input(file);
  for (std::string line; std::getline(input, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = key.empty() ? std::string::npos : line.find(": ");
    return colon == std::string::npos ? line : line.substr(colon + 2);
  }
  return "unknown";
}

c10::ScalarType dtype_of(const BenchFlags& flags, c10::Device device) {
  return compute_dtype(!flags.dtype.empty() ? flags.dtype : device.is_cpu() ? "f32" : "bf16");
}

int64_t free_memory(c10::Device device) {
  if (device.is_cuda()) at::accelerator::emptyCache();
  return free_memory_bytes(device);
}

/// Measures the copy first, so that shares are of the same run.
BenchRun start_run(const BenchFlags& flags, c10::Device device) {
  BenchRun run{
      .what = flags.what, .device = value_in("/proc/cpuinfo", "model name"), .driver = "none", .commit = flags.commit};
  const int64_t room = free_memory(device) / 4, wanted = device.is_cpu() ? kCopyBytesCpu : kCopyBytesCuda;
  run.copy_bytes_per_second = DeviceTimer(device).copy_speed(std::min(wanted, room));
  if (device.is_cpu()) return run;
  const CinchCudaDevice found = describe_cuda_devices().at(static_cast<size_t>(std::max<int>(device.index(), 0)));
  run.device = found.name;
  run.driver = value_in("/sys/module/nvidia/version", "");
  run.copy_bytes_per_second = std::max(run.copy_bytes_per_second, found.copy_bytes_per_second);
  run.specified_bytes_per_second = found.specified_bytes_per_second;
  return run;
}

const DecodeFunctions* functions_on(c10::Device device) {
  return device.is_cuda() ? plugin_decode_functions() : nullptr;
}

void report(const BenchFlags& flags, const Json& json, const std::string& table, AtomicFile* output) {
  if (output != nullptr) {
    output->write(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    output->commit();
  }
  if (json_output()) {
    print_json(json);
  } else {
    print(table);
  }
  check_interrupt(
      fmt::format("what was measured until then stands above; run `cinch bench {}` again for the rest", flags.what));
}

/// Throws ResourceError where nothing takes the cases, and where none had the memory that it needs.
template <typename Row>
void check_some_ran(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    if (row.status != "does not fit" && row.status != "out of memory") return;
  }
  if (rows.empty()) {
    throw ResourceError("no kernel that this machine can run takes any of these cases",
                        "`cinch doctor` shows what it can run; caches of fewer bits than 16 need --device cuda");
  }
  throw ResourceError("no case fits into the memory that is free", "give smaller --batch and --context");
}

void run_kernels(const BenchFlags& flags, c10::Device device, AtomicFile* output) {
  const std::vector<DecodeCase> cases = decode_cases(grid_of_flags(flags));
  const double start = now();
  BenchRun run = start_run(flags, device);
  const KernelBenchOptions options{.device = device,
                                   .dtype = dtype_of(flags, device),
                                   .functions = functions_on(device),
                                   .kernels = flags.kernels,
                                   .graphs = !flags.no_graphs,
                                   .memory_bytes = free_memory(device),
                                   .rotation_bytes = kRotations * cache_near_processor(device),
                                   .copy_bytes_per_second = run.copy_bytes_per_second,
                                   .specified_bytes_per_second = run.specified_bytes_per_second};
  std::vector<KernelBenchRow> rows;
  bench_kernels(cases, options,
                [&](const std::vector<KernelBenchRow>& made) { rows.insert(rows.end(), made.begin(), made.end()); });
  run.seconds = now() - start;
  run.interrupted = interrupt_requested();
  report(flags, bench_json(run, rows, options), kernel_table(run, rows), output);
  check_some_ran(rows);
}

void run_decode(const BenchFlags& flags, c10::Device device, AtomicFile* output) {
  const DecodeKernel kernel = flags.kernels.empty() ? DecodeKernel::automatic : with_context("reading --kernel", [&] {
    return parse_decode_kernel(flags.kernels.front());
  });
  ModelBenchOptions options{.device = device,
                            .dtype = dtype_of(flags, device),
                            .functions = functions_on(device),
                            .batches = flags.batches,
                            .contexts = flags.contexts,
                            .kernel = kernel,
                            .graphs = !flags.no_graphs,
                            .steps = flags.steps,
                            .free_memory = [device] { return free_memory(device); }};
  if (!flags.kv_bits.empty()) options.formats = formats_of_flags(flags);
  if (options.batches.empty())
    options.batches = device.is_cpu() ? std::vector<int64_t>{1, 4} : std::vector<int64_t>{1, 16, 64};
  if (options.contexts.empty())
    options.contexts = device.is_cpu() ? std::vector<int64_t>{128, 512} : std::vector<int64_t>{2048, 8192, 32768};
  const std::vector<BenchModel> models = bench_models_of(models_of_flags(flags));
  const double start = now();
  BenchRun run = start_run(flags, device);
  options.copy_bytes_per_second = run.copy_bytes_per_second;
  std::vector<ModelBenchRow> rows;
  bench_models(models, options, [&](const ModelBenchRow& row) { rows.push_back(row); });
  run.seconds = now() - start;
  run.interrupted = interrupt_requested();
  report(flags, bench_json(run, rows, options), model_table(run, rows), output);
  check_some_ran(rows);
}

void run(const BenchFlags& flags) {
  check_bench_flags(flags);
  const c10::Device device = open_device(flags.device);
  // Before the work, so that a bad place shows at once.
  const auto output = flags.output.empty() ? nullptr : std::make_unique<AtomicFile>(flags.output);
  if (flags.what == "kernels") return run_kernels(flags, device, output.get());
  run_decode(flags, device, output.get());
}

}  // namespace

Command bench_command() {
  return {"bench", [](CLI::App& app) {
            auto flags = std::make_shared<BenchFlags>();
            CLI::App* command = app.add_subcommand(
                "bench", "Decode speed: of every kernel for one layer, or of whole models before and after conversion");
            add_bench_options(*command, *flags);
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
