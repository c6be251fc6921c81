#include "convert/output_check.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "checkpoints/checkpoint_format.h"
#include "core/digest.h"
#include "core/errors.h"
#include "model/decoder_model.h"

namespace cinch {
namespace {

constexpr double kRoundOff = 1e-3;        // of the logits' RMS: the same numbers, summed in another order
constexpr double kQuantisedLogits = 0.5;  // the same for Q8_0 weights
constexpr double kQuantisedTensor = 0.02;

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw VerificationError(fmt::format("{}: {}", path.filename().string(), what),
                          "nothing was published; check the disk and run again with --resume");
}

void check_digests(const OutputCheck& check) {
  const auto raw = open_tensors(check.path);
  for (const auto& [name, digest] : check.digests) {
    const TensorInfo* info = raw->find(name);
    if (info == nullptr) fail(check.path, fmt::format("tensor \"{}\" is missing", name));
    if (!info->stored_as.empty()) continue;  // reading gives dequantised numbers
    if (xxh3_hex(raw->read(name).bytes) != digest)
      fail(check.path, fmt::format("tensor \"{}\" reads back different bytes", name));
    raw->release(name);
  }
}

/// Number of derived tensors compared.
int64_t check_derived(const OutputCheck& check, const ModelSource& written) {
  int64_t compared = 0;
  for (int64_t layer = 0; layer < check.plan.target.n_layers; ++layer) {
    if (!check.plan.converted[static_cast<size_t>(layer)]) continue;
    for (const auto& [name, meant] : check.partial.load_layer(layer).tensors) {
      const at::Tensor found = written.tensor(name, meant.scalar_type());
      const bool equal = check.quantised
                             ? (found - meant).norm().item<double>() <= kQuantisedTensor * meant.norm().item<double>()
                             : at::equal(found, meant);
      if (!equal) fail(check.path, fmt::format("tensor \"{}\" differs from what was computed", name));
      written.tensors().release(name);
      ++compared;
    }
  }
  return compared;
}

at::Tensor written_logits(const OutputCheck& check, std::shared_ptr<ModelSource> written) {
  LayerStream stream(std::move(written), check.window.unsqueeze(0), {});
  while (!stream.done()) stream.advance(stream.load_layer());
  return stream.trunk().logits(stream.hidden()[0].narrow(0, 0, check.logits.size(0)));
}

}  // namespace

VerificationResult check_output(const OutputCheck& check) {
  VerificationResult result;
  check_digests(check);
  // A bare tensor file does not say what model it is; its digests are all there is to check.
  if (check.format == "safetensors") return result;
  const std::shared_ptr<ModelSource> written = ModelSource::open(check.path);
  result.tensors = check_derived(check, *written);
  const at::Tensor difference = (written_logits(check, written) - check.logits).abs();
  result.max_abs_logit_difference = difference.max().item<double>();
  result.logit_rms = check.logits.square().mean().sqrt().item<double>();
  result.tokens = check.logits.size(0);
  const double allowed = (check.quantised ? kQuantisedLogits : kRoundOff) * result.logit_rms;
  if (!(result.max_abs_logit_difference <= allowed)) {
    fail(check.path, fmt::format("the logits of the written model differ by {:.3g} from those of the model in memory; "
                                 "at most {:.3g} is round-off",
                                 result.max_abs_logit_difference, allowed));
  }
  return result;
}

}  // namespace cinch
