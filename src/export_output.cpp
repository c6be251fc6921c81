#include "src/export_output.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

namespace cinch {

ExportReport export_with_provenance(std::shared_ptr<ModelSource> source, ExportOptions options) {
  const c10::InferenceMode inference;
  options.provenance = {{"cinch", CINCH_VERSION},
                        {"command", "export"},
                        {"source", source->path().filename().string()},
                        {"format", options.writer.format},
                        {"runtime", options.writer.runtime},
                        {"dtype", options.writer.dtype}};
  return export_model(std::move(source), options);
}

ExportReport export_converted(const std::filesystem::path& converted, const ModelWriterOptions& writer) {
  return export_with_provenance(ModelSource::open(converted), {.writer = writer, .provenance = {}});
}

std::string export_text(const std::filesystem::path& output, const ExportReport& report) {
  std::string text;
  for (const BrokenRule& entry : report.left_out)
    text += fmt::format("Left out: [{}] {}\n", entry.rule->id, entry.obstacle);
  if (const Json& check = report.verification; check.is_object()) {
    const Json& difference = check["difference"];
    text += fmt::format("{}: logits of {} tokens by {}: largest difference {:.2g}, KL {:.2g} nats, top-1 {:.1f} %\n",
                        report.left_out.empty() ? "Verified" : "Measured", check["tokens"].get<int64_t>(),
                        check["path"].get<std::string>(), difference["max_abs"].get<double>(),
                        difference["kl_mean"].get<double>(), 100 * difference["top1_agreement"].get<double>());
    if (check.contains("rounding")) {
      text += fmt::format("Rounding to this type alone: KL {:.2g} nats, top-1 {:.1f} %\n",
                          check["rounding"]["kl_mean"].get<double>(),
                          100 * check["rounding"]["top1_agreement"].get<double>());
    }
  }
  return text + fmt::format("{}: {} tensors{}\n", output.string(), report.tensors,
                            report.runtime.empty() ? "" : " for " + report.runtime);
}

}  // namespace cinch
