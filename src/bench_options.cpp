#include "src/bench_options.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/errors.h"
#include "src/usage_errors.h"

namespace cinch {
namespace {

constexpr int64_t kLeastContext = 4;  // of models: steps have to fit in

CLI::Option* add_list(CLI::App& command, const std::string& name, std::vector<int64_t>& values,
                      const std::string& description) {
  return command.add_option(name, values, description)->delimiter(',')->type_name("INT");
}

void add_shared_options(CLI::App& command, BenchFlags& flags) {
  command.add_option("--device", flags.device, "cpu or cuda[:i]")->capture_default_str()->type_name("DEVICE");
  command.add_option("--dtype", flags.dtype, "Type of what is not in a cache of fewer bits (default: bf16, CPU f32)")
      ->type_name("bf16|f16|f32");
  add_list(command, "--batch", flags.batches, "Sequences at once, as 1,16,64");
  add_list(command, "--context", flags.contexts, "Cached tokens of each sequence, as 2048,8192,32768");
  command.add_option("--kv-bits", flags.kv_bits, "Cache formats of latents, as 16,8,fp8,4 (default: 16)")
      ->delimiter(',')
      ->type_name("16|8|fp8|4");
  command
      .add_option("--kernel", flags.kernels,
                  "decode: force auto, attend, mma or sm90; kernels: measure only these of cinch, mma, sm90, attend, "
                  "sdpa-flash, sdpa-cudnn, sdpa-cudnn-rows, sdpa-efficient, sdpa-math, two-gemm")
      ->delimiter(',')
      ->type_name("NAME");
  add_list(command, "--rank", flags.ranks, "Width of the latent: kernels: of the cases; decode: of --to mla");
  add_list(command, "--rope-dim", flags.rope_dims, "Width of the rotary key, likewise");
  command.add_flag("--no-graphs", flags.no_graphs, "Launch every step anew instead of replaying a CUDA graph");
  command.add_option("--commit", flags.commit, "Commit to record beside the numbers")
      ->capture_default_str()
      ->type_name("TEXT");
  command.add_option("--output", flags.output, "Also write the JSON report to this file")->type_name("FILE");
}

void add_kernel_options(CLI::App& command, BenchFlags& flags) {
  flags.of_kernels = {
      command.add_option("--kind", flags.kind, "kernels: cases of this attention only")->type_name("grouped|latent"),
      command.add_flag("--quick", flags.quick, "kernels: a minute's part of the grid"),
      command.add_flag("--ragged", flags.ragged, "kernels: sequences of 1/2 to 3/2 of the context"),
      add_list(command, "--heads", flags.heads, "kernels: query heads"),
      add_list(command, "--kv-heads", flags.kv_heads, "kernels: KV heads of grouped-query attention"),
      add_list(command, "--head-dim", flags.head_dims, "kernels: head size of grouped-query attention"),
      add_list(command, "--v-head-dim", flags.v_head_dims,
               "kernels: latents with the map to values of this width in the step (0: without)")};
}

void add_decode_options(CLI::App& command, BenchFlags& flags) {
  flags.of_decode = {
      command
          .add_option("--shape", flags.shapes,
                      fmt::format("decode: random weights of a built-in shape: {}", fmt::join(shape_names(), ", ")))
          ->delimiter(',')
          ->type_name("NAME"),
      command.add_flag("--random-weights", flags.random_weights,
                       "decode: draw the weights on the device; MODEL may be a config.json then"),
      command
          .add_option("--to", flags.targets,
                      "decode: each model also with the sizes of a conversion (gqa:N, mqa, mla), random weights")
          ->delimiter(',')
          ->type_name("TARGET"),
      command.add_option("--steps", flags.steps, "decode: timed steps of each case")
          ->capture_default_str()
          ->type_name("INT")};
}

void refuse(const std::vector<const CLI::Option*>& options, const std::string& what, const std::string& other) {
  for (const CLI::Option* option : options) {
    if (option->count() == 0) continue;
    throw UsageError(fmt::format("{} is of `cinch bench {}`, not of `cinch bench {}`", option->get_name(), other, what),
                     "see `cinch bench --help`");
  }
}

}  // namespace

void add_bench_options(CLI::App& command, BenchFlags& flags) {
  command
      .add_option("WHAT", flags.what,
                  "kernels: one layer's decode by every kernel; decode: whole models, tokens per second")
      ->required()
      ->type_name("kernels|decode");
  command.add_option("MODEL", flags.models, "decode: folders or files, measured side by side")->type_name("PATH");
  add_shared_options(command, flags);
  add_kernel_options(command, flags);
  add_decode_options(command, flags);
}

void check_bench_flags(const BenchFlags& flags) {
  require_choice("`cinch bench`", flags.what, {"kernels", "decode"});
  const bool kernels = flags.what == "kernels";
  if (kernels && !flags.models.empty()) {
    throw UsageError(fmt::format("`cinch bench kernels` takes no model, found \"{}\"", flags.models.front()),
                     "its data are random; `cinch bench decode MODEL` measures models");
  }
  refuse(kernels ? flags.of_decode : flags.of_kernels, flags.what, kernels ? "decode" : "kernels");
  if (!flags.dtype.empty()) require_choice("--dtype", flags.dtype, {"bf16", "f16", "f32"});
  check_loads(flags.batches, flags.contexts);
  for (const int64_t context : flags.contexts) {
    if (!kernels && context < kLeastContext)
      throw UsageError(fmt::format("--context: expected {} or more, found {}", kLeastContext, context));
  }
  if (flags.steps < 1 || flags.steps > 10000)
    throw UsageError(fmt::format("--steps: expected 1 to 10000, found {}", flags.steps));
  if (!kernels && flags.kernels.size() > 1) throw UsageError("--kernel: `cinch bench decode` takes one");
}

std::vector<CacheFormat> formats_of_flags(const BenchFlags& flags) {
  std::vector<CacheFormat> formats;
  for (const std::string& text : flags.kv_bits) formats.push_back(parse_cache_format(text));
  return formats;
}

GridWish grid_of_flags(const BenchFlags& flags) {
  GridWish wish;
  wish.size = flags.device == "cpu" ? GridSize::small : flags.quick ? GridSize::quick : GridSize::full;
  if (!flags.kind.empty()) {
    require_choice("--kind", flags.kind, {"grouped", "latent"});
    wish.kind = flags.kind == "latent" ? AttentionKind::latent : AttentionKind::grouped_query;
  }
  wish.ranks = flags.ranks;
  wish.rope_dims = flags.rope_dims;
  wish.v_head_dims = flags.v_head_dims;
  wish.formats = formats_of_flags(flags);
  wish.kv_heads = flags.kv_heads;
  wish.head_dims = flags.head_dims;
  wish.heads = flags.heads;
  wish.batches = flags.batches;
  wish.contexts = flags.contexts;
  wish.ragged = flags.ragged;
  return wish;
}

BenchModelWish models_of_flags(const BenchFlags& flags) {
  for (const auto& [flag, values] : {std::pair{"--rank", &flags.ranks}, {"--rope-dim", &flags.rope_dims}}) {
    if (values->size() > 1) throw UsageError(fmt::format("{}: `cinch bench decode` takes one", flag));
  }
  return {.models = flags.models,
          .shapes = flags.shapes,
          .random_weights = flags.random_weights,
          .targets = flags.targets,
          .rank = flags.ranks.empty() ? 0 : flags.ranks.front(),
          .rope_dim = flags.rope_dims.empty() ? -1 : flags.rope_dims.front()};
}

}  // namespace cinch
