// Plans of cuDNN for devices that are not there: the graphs that the plug-in makes are accepted, kernels chosen and
// compiled for sm_80 and sm_90, and the rules say of every shape what cuDNN says. A program of its own, for it puts a
// stand-in in the driver's place. Nothing runs on a device here.
#include <dlfcn.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "attention/kernels/cudnn/cudnn_abi.h"
#include "attention/kernels/cudnn/cudnn_rules.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

using Text = std::array<char, 1024>;

fs::path program() { return fs::read_symlink("/proc/self/exe"); }

template <typename Function>
Function* find(const fs::path& file, const char* name) {
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  void* const found = dlsym(library, name);
  if (found == nullptr) throw std::runtime_error(dlerror());
  return reinterpret_cast<Function*>(found);
}

template <typename Function>
Function* plugin(const char* name) {
  return find<Function>(program().parent_path() / "../lib/libcinch_cudnn.so", name);
}

/// cuDNN looks for the driver by its name, and takes the one that is loaded.
template <typename Function>
Function* stand_in(const char* name) {
  return find<Function>(program().parent_path() / "driver/libcuda.so.1", name);
}

struct Device {
  const char* name;
  int32_t capability, multiprocessors, shared_bytes, megahertz;
  int64_t memory;
};

// NVIDIA's data sheets and the CUDA programming guide's table of compute capabilities.
constexpr Device kA100{"NVIDIA A100-SXM4-80GB", 80, 108, 166912, 1410, int64_t{80} << 30};
constexpr Device kH100{"NVIDIA H100 80GB HBM3", 90, 132, 232448, 1980, int64_t{80} << 30};

/// The fields are those whose lack cuDNN names.
std::string properties_of(const Device& device) {
  return fmt::format(
      R"({{"deviceName":"{}","cudaDeviceId":0,"deviceVer":{},"driverVer":13000,"multiProcessorCount":{},"warpSize":32,)"
      R"("maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,)"
      R"("maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":{},"reservedSharedMemoryPerBlock":1024,)"
      R"("maxRegistersPerSM":65536,"maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,)"
      R"("pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,"totalGlobalMem":{},"smClockRateKHz":{},)"
      R"("memClockRateKHz":1593000,"l2CacheSize":41943040}})",
      device.name, device.capability * 10, device.multiprocessors, device.shared_bytes, device.memory,
      device.megahertz * 1000);
}

struct Sizes {
  int64_t batch, heads, kv_heads, queries, keys, key_width, value_width, window;
};

CinchCudnnStrides by_token(int64_t heads, int64_t tokens, int64_t width) {
  return {heads * tokens * width, width, heads * width};
}

CinchCudnnShape shape_of(const Sizes& sizes, int32_t pass, bool deterministic = false) {
  CinchCudnnShape shape;
  std::memset(&shape, 0, sizeof shape);
  shape.batch = sizes.batch, shape.heads = sizes.heads, shape.kv_heads = sizes.kv_heads;
  shape.queries = sizes.queries, shape.keys = sizes.keys;
  shape.key_width = sizes.key_width, shape.value_width = sizes.value_width, shape.window = sizes.window;
  shape.q = by_token(sizes.heads, sizes.queries, sizes.key_width);
  shape.k = by_token(sizes.kv_heads, sizes.keys, sizes.key_width);
  shape.v = by_token(sizes.kv_heads, sizes.keys, sizes.value_width);
  shape.out = by_token(sizes.heads, sizes.queries, sizes.value_width);
  shape.scale = 0.125F;
  shape.type = CINCH_CUDNN_BF16;
  shape.pass = pass;
  if (pass == CINCH_CUDNN_BACKWARD) {
    shape.dq = shape.q, shape.dk = shape.k, shape.dv = shape.v;
    shape.deterministic = deterministic ? 1 : 0;
  }
  return shape;
}

/// Those of training; a prompt's forward pass differs in what it writes.
std::vector<CinchCudnnShape> passes_of(const Sizes& sizes) {
  return {shape_of(sizes, CINCH_CUDNN_FORWARD_STATS), shape_of(sizes, CINCH_CUDNN_BACKWARD),
          shape_of(sizes, CINCH_CUDNN_BACKWARD, true)};
}

std::string text_of(const CinchCudnnShape& shape, const Device& device) {
  return fmt::format("sm_{} B{} {}/{} heads T{} S{} {}/{} window {} pass {}{}", device.capability, shape.batch,
                     shape.heads, shape.kv_heads, shape.queries, shape.keys, shape.key_width, shape.value_width,
                     shape.window, shape.pass, shape.deterministic != 0 ? " deterministic" : "");
}

struct Answer {
  int32_t status;
  CinchCudnnPlan plan;
  std::string reason;
  int architecture;  // of the kernel that was loaded, 0: none
};

Answer ask(const CinchCudnnShape& shape, const Device& device, bool build = true) {
  const int before = stand_in<int()>("stand_in_loads")();
  const std::string properties = properties_of(device);
  const CinchCudnnTarget target{-1, device.capability, properties.c_str()};
  Text reason{};
  Answer answer{};
  answer.status = plugin<decltype(cinch_cudnn_plan)>("cinch_cudnn_plan")(&shape, &target, build ? 1 : 0, &answer.plan,
                                                                         reason.data(), reason.size());
  answer.reason = reason.data();
  const bool loaded = stand_in<int()>("stand_in_loads")() > before;
  answer.architecture = loaded ? stand_in<int()>("stand_in_architecture")() : 0;
  return answer;
}

/// A plan where the rules say that there is one, within the bound of workspace; none where they say that there is none.
void expect_as_ruled(const CinchCudnnShape& shape, const Device& device) {
  const std::string missing = missing_in_cudnn(shape, device.capability);
  const Answer answer = ask(shape, device);
  const std::string what = text_of(shape, device) + ": " + missing + " / " + answer.reason;
  if (!missing.empty()) {
    EXPECT_EQ(answer.status, CINCH_CUDNN_REFUSED) << what;
    return;
  }
  ASSERT_EQ(answer.status, CINCH_CUDNN_OK) << what;
  EXPECT_EQ(answer.architecture, device.capability) << what;
  EXPECT_EQ(std::string(answer.plan.engine).substr(0, 3), "eng") << what;
  EXPECT_LE(answer.plan.workspace_bytes, cudnn_workspace_bound(shape)) << what;
  if (shape.pass == CINCH_CUDNN_BACKWARD && shape.queries >= 512) {
    EXPECT_GE(answer.plan.workspace_bytes, cudnn_workspace_bound(shape) / 4) << what;
  }
}

// Llama-3-8B's 32 of 8 and 70B's 64 of 8, SmolLM2-135M's 9 of 3, multi-query, DeepSeek's latent attention, a window,
// and a chunk of a longer prompt.
const std::vector<Sizes>& project_shapes() {
  static const std::vector<Sizes> shapes = {{1, 32, 8, 2048, 2048, 128, 128, 0},  {1, 64, 8, 2048, 2048, 128, 128, 0},
                                            {4, 9, 3, 1024, 1024, 64, 64, 0},     {2, 16, 1, 1000, 1000, 64, 64, 0},
                                            {1, 16, 16, 1024, 1024, 192, 128, 0}, {1, 64, 8, 2048, 2048, 64, 64, 1024},
                                            {1, 32, 8, 512, 4096, 128, 128, 0}};
  return shapes;
}

TEST(CudnnPlans, BuildWithoutADevice) {
  for (const Device& device : {kA100, kH100}) {
    expect_as_ruled(shape_of(project_shapes()[0], CINCH_CUDNN_FORWARD_STATS), device);
    expect_as_ruled(shape_of(project_shapes()[0], CINCH_CUDNN_BACKWARD, true), device);
  }
}

TEST(CudnnPlans, AreKept) {
  const CinchCudnnShape shape = shape_of({1, 4, 2, 128, 128, 64, 64, 0}, CINCH_CUDNN_FORWARD);
  EXPECT_EQ(ask(shape, kH100, false).status, CINCH_CUDNN_UNKNOWN);
  EXPECT_EQ(ask(shape, kH100).architecture, 90);
  const Answer again = ask(shape, kH100, false);
  EXPECT_EQ(again.status, CINCH_CUDNN_OK);
  EXPECT_EQ(again.architecture, 0);  // nothing was compiled
  EXPECT_EQ(ask(shape, kA100, false).status, CINCH_CUDNN_UNKNOWN);
  CinchCudnnShape scaled = shape;
  scaled.scale = 0.25F;
  EXPECT_EQ(ask(scaled, kH100, false).status, CINCH_CUDNN_UNKNOWN);
}

TEST(CudnnPlans, RefusalsSayWhyAndAreKept) {
  const CinchCudnnShape shape = shape_of({1, 4, 2, 128, 128, 64, 60, 0}, CINCH_CUDNN_FORWARD);
  const Answer answer = ask(shape, kH100);
  EXPECT_EQ(answer.status, CINCH_CUDNN_REFUSED);
  EXPECT_NE(answer.reason.find("multiple of 8"), std::string::npos) << answer.reason;
  EXPECT_EQ(ask(shape, kH100, false).status, CINCH_CUDNN_REFUSED);
}

TEST(CudnnPlans, AreSaved) {
  const CinchCudnnShape shape = shape_of({1, 4, 2, 128, 128, 64, 64, 0}, CINCH_CUDNN_FORWARD);
  ASSERT_EQ(ask(shape, kH100).status, CINCH_CUDNN_OK);
  const std::string properties = properties_of(kH100);
  const CinchCudnnTarget target{-1, 90, properties.c_str()};
  const auto save = plugin<decltype(cinch_cudnn_save)>("cinch_cudnn_save");
  Text reason{};
  uint64_t size = 0;
  std::vector<char> bytes(16, 7);
  EXPECT_EQ(save(&shape, &target, bytes.data(), bytes.size(), &size, reason.data(), reason.size()), CINCH_CUDNN_FAILED);
  EXPECT_EQ(bytes, std::vector<char>(16, 7));
  ASSERT_GT(size, 10000U);  // the compiled kernel is in it
  bytes.resize(size);
  EXPECT_EQ(save(&shape, &target, bytes.data(), bytes.size(), &size, reason.data(), reason.size()), CINCH_CUDNN_OK);
  EXPECT_NE(std::string(bytes.begin(), bytes.end()).find("cudnn_backend_data"), std::string::npos);
}

TEST(CudnnPlans, DescribedOnesDoNotRun) {
  const CinchCudnnShape shape = shape_of({1, 4, 2, 128, 128, 64, 64, 0}, CINCH_CUDNN_FORWARD);
  const std::string properties = properties_of(kH100);
  const CinchCudnnTarget target{-1, 90, properties.c_str()};
  const CinchCudnnTensors tensors{};
  Text reason{};
  EXPECT_EQ(plugin<decltype(cinch_cudnn_run)>("cinch_cudnn_run")(&shape, &target, &tensors, nullptr, reason.data(),
                                                                 reason.size()),
            CINCH_CUDNN_FAILED);
  EXPECT_STREQ(reason.data(), "a plan of described properties cannot run");
}

TEST(CudnnPlans, PropertiesThatLackAFieldAreNamed) {
  const CinchCudnnShape shape = shape_of({1, 4, 2, 128, 128, 64, 64, 0}, CINCH_CUDNN_FORWARD);
  const CinchCudnnTarget target{-1, 90, "{}"};
  Text reason{};
  CinchCudnnPlan plan{};
  EXPECT_EQ(
      plugin<decltype(cinch_cudnn_plan)>("cinch_cudnn_plan")(&shape, &target, 1, &plan, reason.data(), reason.size()),
      CINCH_CUDNN_FAILED);
  EXPECT_NE(std::string(reason.data()).find("the device's properties"), std::string::npos) << reason.data();
}

TEST(CudnnPlans, VersionIsThatOfTheLibrary) {
  int64_t version = 0;
  Text reason{};
  ASSERT_EQ(plugin<decltype(cinch_cudnn_version)>("cinch_cudnn_version")(&version, reason.data(), reason.size()),
            CINCH_CUDNN_OK)
      << reason.data();
  EXPECT_GE(version, 91501);
}

/// What a test of the name prints in a process of its own, which has LD_LIBRARY_PATH and no stand-in.
std::string in_other_process(const std::string& test, const std::string& library_path) {
  const std::string command =
      fmt::format("LD_LIBRARY_PATH={} {} --gtest_also_run_disabled_tests --gtest_filter=CudnnPlans.DISABLED_{} 2>&1",
                  library_path, program().string(), test);
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "no process";
  std::string text;
  std::array<char, 4096> buffer{};
  for (size_t count = 0; (count = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) text.append(buffer.data(), count);
  pclose(pipe);
  return text;
}

TEST(CudnnPlans, DISABLED_SayTheVersion) {
  int64_t version = 0;
  Text reason{};
  const int32_t status =
      plugin<decltype(cinch_cudnn_version)>("cinch_cudnn_version")(&version, reason.data(), reason.size());
  std::printf("status %d reason %s\n", status, reason.data());
}

TEST(CudnnPlans, ALibraryThatDoesNotLoadIsNamed) {
  const fs::path folder = fs::temp_directory_path() / fmt::format("cinch_cudnn_{}", getpid());
  fs::create_directories(folder);
  std::fclose(std::fopen((folder / "libcudnn.so.9").c_str(), "w"));  // found first, and no library
  const std::string text = in_other_process("SayTheVersion", folder.string());
  fs::remove_all(folder);
  EXPECT_NE(text.find("status 2 reason cannot load libcudnn.so.9: "), std::string::npos) << text;
}

TEST(CudnnPlans, DISABLED_BuildWithoutADriver) {
  const CinchCudnnShape shape = shape_of({1, 4, 2, 128, 128, 64, 64, 0}, CINCH_CUDNN_FORWARD);
  const std::string properties = properties_of(kH100);
  const CinchCudnnTarget target{-1, 90, properties.c_str()};
  CinchCudnnPlan plan{};
  Text reason{};
  const int32_t status =
      plugin<decltype(cinch_cudnn_plan)>("cinch_cudnn_plan")(&shape, &target, 1, &plan, reason.data(), reason.size());
  std::printf("status %d reason %s driver %d\n", status, reason.data(), dlopen("libcuda.so.1", RTLD_LAZY) != nullptr);
}

// What keeps cuDNN 9.19 from building them with no driver at all: it loads what it compiled.
TEST(CudnnPlans, NeedADriversLibrary) {
  const std::string text = in_other_process("BuildWithoutADriver", "");
  if (text.find("driver 1") != std::string::npos) GTEST_SKIP() << "this machine has a driver";
  EXPECT_NE(text.find("status 1 reason heuristics: "), std::string::npos) << text;
  EXPECT_NE(text.find("libcuda"), std::string::npos) << text;
}

class SlowCudnnPlans : public testing::Test {};

TEST_F(SlowCudnnPlans, OfTheProjectsShapes) {
  for (const Device& device : {kA100, kH100}) {
    for (const Sizes& sizes : project_shapes()) {
      expect_as_ruled(shape_of(sizes, CINCH_CUDNN_FORWARD), device);
      for (const CinchCudnnShape& shape : passes_of(sizes)) expect_as_ruled(shape, device);
    }
  }
}

TEST_F(SlowCudnnPlans, WidthsAreAsRuled) {
  const std::vector<std::pair<int64_t, int64_t>> widths = {{8, 8},     {24, 16},   {48, 48},   {64, 128},  {128, 64},
                                                           {136, 128}, {160, 128}, {192, 128}, {128, 136}, {128, 256},
                                                           {256, 64},  {256, 256}, {100, 100}, {64, 68}};
  for (const Device& device : {kA100, kH100}) {
    for (const auto& [key, value] : widths) {
      for (const CinchCudnnShape& shape : passes_of({2, 8, 2, 512, 512, key, value, 0})) expect_as_ruled(shape, device);
    }
  }
}

TEST_F(SlowCudnnPlans, TokensAndHeadsAreAsRuled) {
  const std::vector<Sizes> shapes = {
      {2, 8, 2, 300, 300, 128, 128, 50}, {2, 8, 2, 1000, 1000, 128, 128, 1}, {2, 8, 2, 100, 300, 128, 128, 50},
      {2, 8, 2, 127, 1025, 128, 128, 0}, {2, 8, 2, 2, 300, 128, 128, 0},     {2, 8, 2, 300, 100, 128, 128, 0},
      {1, 30, 5, 514, 514, 64, 64, 0},   {1, 7, 1, 512, 512, 64, 64, 0},     {1, 128, 128, 512, 512, 64, 64, 0},
      {1, 9, 2, 512, 512, 64, 64, 0},    {3, 12, 4, 65, 65, 72, 40, 0},      {2, 8, 2, 2, 2, 64, 64, 0}};
  for (const Device& device : {kA100, kH100}) {
    for (const Sizes& sizes : shapes) {
      for (const CinchCudnnShape& shape : passes_of(sizes)) expect_as_ruled(shape, device);
    }
  }
}

// Layouts as tensors come: heads outside of tokens, a slice of wider rows (the values that follow the keys of one
// matrix), axes of one element, fp16.
TEST_F(SlowCudnnPlans, LayoutsAreTaken) {
  for (const Device& device : {kA100, kH100}) {
    for (CinchCudnnShape shape : passes_of({2, 8, 2, 256, 256, 64, 64, 0})) {
      shape.type = CINCH_CUDNN_FP16;
      shape.q = {8 * 256 * 64, 256 * 64, 64};
      shape.k = {256 * 2 * 128, 128, 2 * 128};
      shape.v = shape.k;
      expect_as_ruled(shape, device);
    }
    for (CinchCudnnShape shape : passes_of({1, 8, 1, 256, 256, 64, 64, 0})) {
      shape.q.batch = 8 * 256 * 64;
      shape.k.batch = shape.k.head = 256 * 64;
      shape.v = shape.k;
      expect_as_ruled(shape, device);
    }
  }
}

}  // namespace
}  // namespace cinch
