#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <H5public.h>
#include <fmt/format.h>
#include <pwd.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <thread>

#include "attention/kernels/cudnn/cudnn_library.h"
#include "core/errors.h"
#include "core/files.h"
#include "src/command_list.h"
#include "src/device.h"
#include "src/kernel_report.h"
#include "src/model_argument.h"
#include "src/output.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

/// Value of the first line "key : value" of a file under /proc.
std::string proc_value(const char* file, const std::string& key) {
  std::ifstream input(file);
  for (std::string line; std::getline(input, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    const size_t begin = colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
    if (begin != std::string::npos) return line.substr(begin);
  }
  return {};
}

uint64_t memory_bytes(const std::string& key) {
  const std::string value = proc_value("/proc/meminfo", key);
  return value.empty() ? 0 : std::strtoull(value.c_str(), nullptr, 10) * 1024;
}

fs::path cache_folder() {
  for (const auto& [variable, rest] : {std::pair{"XDG_CACHE_HOME", "cinch"}, {"HOME", ".cache/cinch"}}) {
    const char* value = std::getenv(variable);
    if (value != nullptr && *value != '\0') return fs::path(value) / rest;
  }
  return {};
}

struct DoctorFlags {
  std::string kernels_of, dtype = "bf16", device = "cpu", kv_bits = "16";
};

/// Of the model that --kernels names, else of a layer as small models have it.
Json kernels(const DoctorFlags& flags) {
  const KernelQuestion question{.dtype = compute_dtype(flags.dtype),
                                .device = open_device(flags.device),
                                .cache_format = parse_cache_format(flags.kv_bits)};
  if (!flags.kernels_of.empty()) return kernel_report(open_model(flags.kernels_of, "--kernels")->config(), question);
  ModelConfig config;
  AttentionSpec& layer = config.layers.emplace_back();
  layer.n_heads = 9;
  layer.n_kv_heads = 3;
  layer.head_dim = 64;
  layer.scale = 0.125;
  return kernel_report(config, question);
}

/// Version of the cuDNN that attention can reach, or why it cannot.
std::string cudnn() try { return cudnn_version(); } catch (const Error& error) {
  return std::string("none: ") + error.what();
}

Json examine(const DoctorFlags& flags) {
  std::string why;
  const int devices = load_cuda(why);
  Json cuda = {{"devices", devices}};
  if (devices == 0) cuda["missing"] = why;
  cuda["cudnn"] = cudnn();
  const fs::path cache = cache_folder();
  return {{"cinch", CINCH_VERSION},
          {"cpu",
           {{"model", proc_value("/proc/cpuinfo", "model name")},
            {"cores", std::thread::hardware_concurrency()},
            {"threads", at::get_num_threads()},
            {"capability", at::get_cpu_capability()}}},
          {"memory", {{"total_bytes", memory_bytes("MemTotal")}, {"available_bytes", memory_bytes("MemAvailable")}}},
          {"disk", {{"folder", fs::current_path().string()}, {"free_bytes", free_disk_bytes(fs::current_path())}}},
          {"cache", {{"folder", cache.string()}, {"exists", !cache.empty() && fs::exists(cache)}}},
          {"libraries",
           {{"libtorch", TORCH_VERSION},
            {"hdf5", fmt::format("{}.{}.{}", H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE)},
            {"cli11", CLI11_VERSION},
            {"json", fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR,
                                 NLOHMANN_JSON_VERSION_PATCH)}}},
          {"cuda", cuda},
          {"attention_kernels", kernels(flags)}};
}

std::string to_text(const Json& json, const DoctorFlags& flags) {
  const Json& cpu = json["cpu"];
  std::string text = fmt::format("cinch {}\n", json["cinch"].get<std::string>());
  text += fmt::format("CPU      {}, {} cores, {} threads used, vector code: {}\n", cpu["model"].get<std::string>(),
                      cpu["cores"].get<int>(), cpu["threads"].get<int>(), cpu["capability"].get<std::string>());
  text += fmt::format("memory   {} of {} available\n", human_bytes(json["memory"]["available_bytes"].get<uint64_t>()),
                      human_bytes(json["memory"]["total_bytes"].get<uint64_t>()));
  text += fmt::format("disk     {} free in {}\n", human_bytes(json["disk"]["free_bytes"].get<uint64_t>()),
                      json["disk"]["folder"].get<std::string>());
  text += fmt::format("cache    {}{}\n", json["cache"]["folder"].get<std::string>(),
                      json["cache"]["exists"].get<bool>() ? "" : " (not there yet)");
  text += fmt::format("LibTorch {}, HDF5 {}\n", json["libraries"]["libtorch"].get<std::string>(),
                      json["libraries"]["hdf5"].get<std::string>());
  const int devices = json["cuda"]["devices"].get<int>();
  text += devices > 0 ? fmt::format("CUDA     {} device(s)\n", devices)
                      : fmt::format("CUDA     none: {}\n", json["cuda"]["missing"].get<std::string>());
  text += fmt::format("cuDNN    {}\n", json["cuda"]["cudnn"].get<std::string>());
  text += fmt::format("attention kernels{}:\n", flags.kernels_of.empty() ? ", for a layer as small models have it"
                                                                         : fmt::format(" for {}", flags.kernels_of));
  return text + kernel_report_text(json["attention_kernels"]);
}

}  // namespace

Command doctor_command() {
  return {"doctor", [](CLI::App& app) {
            auto flags = std::make_shared<DoctorFlags>();
            CLI::App* command =
                app.add_subcommand("doctor", "What this machine can run: CPU, memory, disk, libraries, CUDA, kernels");
            command
                ->add_option("--kernels", flags->kernels_of,
                             "Say which attention kernels run for this model's layers, and why not others")
                ->type_name("MODEL");
            command->add_option("--dtype", flags->dtype, "Type to ask for")
                ->capture_default_str()
                ->type_name("f32|bf16|f16|f64");
            command->add_option("--device", flags->device, "Device to ask for: cpu or cuda[:i]")
                ->capture_default_str()
                ->type_name("DEVICE");
            command->add_option("--kv-bits", flags->kv_bits, "Cache format of latent layers to ask for")
                ->capture_default_str()
                ->type_name("16|8|fp8|4");
            command->callback([flags] {
              const Json json = examine(*flags);
              if (json_output()) {
                print_json(json);
              } else {
                print(to_text(json, *flags));
              }
            });
          }};
}

}  // namespace cinch
