#include "eval/bench/kernel_bench.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/progress.h"
#include "eval/bench/contenders.h"
#include "eval/bench/device_timer.h"
#include "eval/bench/fault.h"

namespace cinch {
namespace {

constexpr int64_t kMostCopiesCpu = 32, kMostCopiesCuda = 512;
constexpr double kMemoryShare = 0.8;  // the rest is for results, scores and what libraries take

void synchronize(at::Device device) {
  if (!device.is_cpu()) at::accelerator::synchronizeDevice(device.index());
}

class CaseRun {
 public:
  CaseRun(const DecodeCase& decode, const KernelBenchOptions& options)
      : decode_(decode),
        options_(options),
        element_bytes_(static_cast<int64_t>(at::elementSize(options.dtype))),
        timer_(options.device, {.graphs = options.graphs, .fill = options.device.is_cpu() ? 0.02 : 0.05}) {}

  std::vector<KernelBenchRow> run(const std::vector<std::unique_ptr<Contender>>& list) const {
    std::vector<KernelBenchRow> rows;
    for (const bool paged : {true, false}) {
      std::vector<const Contender*> members;
      for (const auto& contender : list) {
        if (contender->paged() == paged && contender->missing(decode_, options_.device).empty())
          members.push_back(contender.get());
      }
      if (!members.empty()) run_layout(members, paged, rows);
    }
    return rows;
  }

 private:
  int64_t bytes_of_one() const { return held_bytes(decode_, element_bytes_) + io_bytes(decode_, element_bytes_); }

  int64_t copies() const {
    const int64_t wanted = options_.rotation_bytes / std::max<int64_t>(cache_bytes(decode_, element_bytes_), 1) + 1;
    const auto room = static_cast<int64_t>(kMemoryShare * static_cast<double>(options_.memory_bytes)) / bytes_of_one();
    return std::min({wanted, room, options_.device.is_cpu() ? kMostCopiesCpu : kMostCopiesCuda});
  }

  KernelBenchRow row_of(const Contender& contender, int64_t copy_count) const {
    KernelBenchRow row;
    row.decode = decode_;
    row.contender = row.kernel = contender.name();
    row.layout = contender.paged() ? "paged" : "dense";
    row.ours = contender.ours();
    row.cache_bytes = cache_bytes(decode_, element_bytes_);
    row.io_bytes = io_bytes(decode_, element_bytes_);
    row.rotated_bytes = copy_count * row.cache_bytes;
    return row;
  }

  /// All of one layout on the same inputs.
  void run_layout(const std::vector<const Contender*>& members, bool paged, std::vector<KernelBenchRow>& rows) const {
    const int64_t copy_count = copies();
    std::vector<DecodeInputs> inputs;
    std::optional<DecodeReference> reference;
    std::string fault;
    if (copy_count > 0) {
      try {
        inputs = make_inputs(decode_, copy_count, paged, options_.dtype, options_.device);
        reference.emplace(decode_, inputs.front());
      } catch (const std::exception& error) {
        fault = explain_fault(error).reason;
      }
    }
    for (const Contender* contender : members) {
      KernelBenchRow row = row_of(*contender, copy_count);
      if (copy_count < 1 || !fault.empty()) {
        row.status = copy_count < 1 ? "does not fit" : "out of memory";
        row.reason = fault;
      } else {
        measure(*contender, inputs, *reference, row);
      }
      rows.push_back(std::move(row));
    }
  }

  void measure(const Contender& contender, const std::vector<DecodeInputs>& inputs, const DecodeReference& reference,
               KernelBenchRow& row) const {
    try {
      const PreparedDecode prepared = contender.prepare(decode_, inputs);
      row.kernel = prepared.kernel;
      row.error = reference.error_of(prepared.works.front()());
      if (!(row.error <= kDecodeTolerance)) {
        row.status = "wrong";
        return;
      }
      std::vector<std::function<void()>> works;
      for (const DecodeWork& work : prepared.works) works.emplace_back([&work] { (void)work(); });
      const WorkTime time = timer_.time(works);
      row.seconds = time.seconds;
      row.fastest = time.fastest;
      row.slowest = time.slowest;
      row.replays = time.replays;
      row.graph = time.graph;
      if (prepared.once_per_step) row.plan_seconds = timer_.time({prepared.once_per_step}).seconds;
      synchronize(options_.device);
    } catch (const std::exception& error) {
      const BenchFault fault = explain_fault(error);
      row.status = fault.status;
      row.reason = fault.reason;
    }
  }

  const DecodeCase& decode_;
  const KernelBenchOptions& options_;
  int64_t element_bytes_;
  DeviceTimer timer_;
};

const char* type_name(at::ScalarType type) {
  return type == at::kHalf ? "f16" : type == at::kBFloat16 ? "bf16" : type == at::kDouble ? "f64" : "f32";
}

}  // namespace

void bench_kernels(const std::vector<DecodeCase>& cases, const KernelBenchOptions& options,
                   const std::function<void(const std::vector<KernelBenchRow>&)>& on_rows) {
  const at::NoGradGuard no_grad;
  const auto list = contenders(options.functions, options.kernels);
  Progress progress({.phase = "kernels", .unit = "cases", .total = cases.size()});
  for (const DecodeCase& decode : cases) {
    progress.set_note(text_of(decode));
    on_rows(CaseRun(decode, options).run(list));
    progress.advance();
    if (interrupt_requested()) break;
  }
}

Json row_json(const KernelBenchRow& row, const KernelBenchOptions& options) {
  const DecodeCase& decode = row.decode;
  Json json = {{"attention", decode.latent() ? "mla" : "gqa"},
               {"contender", row.contender},
               {"kernel", row.kernel},
               {"ours", row.ours},
               {"layout", row.layout},
               {"dtype", type_name(options.dtype)},
               {"kv_format", name_of(decode.format)},
               {"batch", decode.batch},
               {"context", decode.context},
               {"n_heads", decode.n_heads},
               {"n_kv_heads", decode.n_kv_heads},
               {"head_dim", decode.head_dim},
               {"kv_lora_rank", decode.kv_lora_rank},
               {"qk_rope_head_dim", decode.qk_rope_head_dim},
               {"v_head_dim", decode.v_head_dim},
               {"ragged", decode.ragged},
               {"cache_bytes", row.cache_bytes},
               {"io_bytes", row.io_bytes},
               {"rotated_bytes", row.rotated_bytes},
               {"status", row.status}};
  if (!row.reason.empty()) json["reason"] = row.reason;
  if (row.error >= 0) json["error"] = std::isfinite(row.error) ? Json(row.error) : Json();
  if (row.status != "ok") return json;
  const double speed = static_cast<double>(row.cache_bytes) / row.seconds;
  json["us"] = row.seconds * 1e6;
  json["fastest_us"] = row.fastest * 1e6;
  json["slowest_us"] = row.slowest * 1e6;
  if (row.plan_seconds > 0) json["plan_us"] = row.plan_seconds * 1e6;
  json["replays"] = row.replays;
  json["graph"] = row.graph;
  json["gb_per_s"] = speed * 1e-9;
  if (options.copy_bytes_per_second > 0) json["share_of_copy"] = speed / options.copy_bytes_per_second;
  if (options.specified_bytes_per_second > 0)
    json["share_of_specification"] = speed / options.specified_bytes_per_second;
  return json;
}

}  // namespace cinch
