// The export that `export` and `convert --export` run, and how its report reads.
#pragma once

#include <filesystem>
#include <string>

#include "model/export/exporter.h"

namespace cinch {

/// `source` as `options` say; fills in the provenance.
ExportReport export_with_provenance(std::shared_ptr<ModelSource> source, ExportOptions options);
/// Of a model that `convert` has just written.
ExportReport export_converted(const std::filesystem::path& converted, const ModelWriterOptions& writer);
std::string export_text(const std::filesystem::path& output, const ExportReport& report);

}  // namespace cinch
