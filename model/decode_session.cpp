#include "model/decode_session.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/errors.h"
#include "model/mixed_layers.h"

namespace cinch {
namespace {

void check(const DecodeSessionOptions& options, const ModelConfig& config) {
  const auto positive = [](const char* name, int64_t value) {
    if (value < 1) throw UsageError(fmt::format("a decode session needs a {} of 1 or more, found {}", name, value));
  };
  positive("batch", options.batch);
  positive("max_tokens", options.max_tokens);
  positive("prefill_chunk", options.prefill_chunk);
  if (options.cache_format != CacheFormat::sixteen_bit && !has_latent_layers(config)) {
    throw UnsupportedError(fmt::format("a cache of {} needs latent attention, and no layer of this model has it",
                                       name_of(options.cache_format)),
                           "cinch convert --to mla makes such a model; --kv-bits 16 runs this one");
  }
}

/// On the device, as a session's public functions compute.
class Scope {
 public:
  explicit Scope(at::Device device) : guard_(device) {}

 private:
  c10::DeviceGuard guard_;
  at::NoGradGuard no_grad_;
};

}  // namespace

DecodeSession::DecodeSession(const DecoderModel& model, const DecodeSessionOptions& options,
                             const DecodeFunctions* functions)
    : model_(&model), options_(options) {
  check(options, model.config());
  const Scope scope(model.device());
  batch_ = std::make_unique<DecodeBatch>(DecodeBatch::Sizes{.sequences = options.batch,
                                                            .max_tokens = options.max_tokens,
                                                            .prefill_chunk = options.prefill_chunk,
                                                            .dtype = model.dtype(),
                                                            .device = model.device()},
                                         functions);
  for (const DecoderLayer& layer : model.layers()) {
    ChosenDecodeLayer chosen = with_context(fmt::format("decoding with layer {}", layers_.size()), [&] {
      return make_decode_layer(layer.attention(), *batch_, {.kernel = options.kernel, .format = options.cache_format});
    });
    layers_.push_back(std::move(chosen.layer));
    choices_.push_back(std::move(chosen.choice));
  }
  ids_ = at::zeros({options.batch}, at::TensorOptions(at::kLong).device(model.device()));
  why_no_graph_ = reason_against_graph();
  if (why_no_graph_.empty()) graph_ = std::make_unique<DeviceGraph>(model.device());
}

std::string DecodeSession::reason_against_graph() const {
  if (!options_.graphs) return "not asked for";
  for (size_t layer = 0; layer < choices_.size(); ++layer) {
    if (choices_[layer].kernel == DecodeKernel::attend) return fmt::format("layer {} has no decode kernel", layer);
  }
  return {};
}

at::Tensor DecodeSession::prefill(const std::vector<std::vector<int64_t>>& prompts) {
  if (static_cast<int64_t>(prompts.size()) != options_.batch)
    throw UsageError(fmt::format("expected {} prompts, found {}", options_.batch, prompts.size()));
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto tokens = static_cast<int64_t>(prompts[i].size());
    if (tokens < 1 || tokens > options_.max_tokens) {
      throw UsageError(fmt::format("prompt {}: expected 1 to {} tokens, found {}", i, options_.max_tokens, tokens));
    }
    if (lengths()[i] > 0) throw UsageError(fmt::format("sequence {} has tokens already", i));
  }
  const Scope scope(model_->device());
  std::vector<at::Tensor> last;
  for (size_t i = 0; i < prompts.size(); ++i) last.push_back(prefill_sequence(prompts[i], static_cast<int64_t>(i)));
  logits_ = at::cat(last);
  ids_.copy_(logits_.argmax(-1));
  return logits_;
}

at::Tensor DecodeSession::prefill_sequence(const std::vector<int64_t>& prompt, int64_t sequence) {
  const auto tokens = static_cast<int64_t>(prompt.size());
  const at::Tensor ids = at::tensor(prompt, at::kLong).to(model_->device()).unsqueeze(0);
  at::Tensor h;
  for (int64_t first = 0; first < tokens; first += options_.prefill_chunk) {
    const int64_t count = std::min(options_.prefill_chunk, tokens - first);
    batch_->set_length(sequence, first + count);
    h = model_->trunk().embed(ids.narrow(1, first, count));
    for (size_t i = 0; i < layers_.size(); ++i) {
      const DecoderLayer& layer = model_->layers()[i];
      const at::Tensor heads = layers_[i]->prefill(layer.attention_input(h), sequence, first);
      h = layer.add_mlp(layer.add_attention(h, layer.attention().output(heads)));
    }
  }
  return model_->trunk().logits(h.select(1, h.size(1) - 1));
}

void DecodeSession::fill(int64_t tokens) {
  if (tokens < 1 || tokens > options_.max_tokens)
    throw UsageError(fmt::format("expected 1 to {} tokens, found {}", options_.max_tokens, tokens));
  const Scope scope(model_->device());
  for (const auto& layer : layers_) layer->fill(tokens);
  for (int64_t sequence = 0; sequence < options_.batch; ++sequence) batch_->set_length(sequence, tokens);
}

const at::Tensor& DecodeSession::step(const at::Tensor& ids) {
  if (ids.dim() != 1 || ids.size(0) != options_.batch) {
    throw ShapeError(
        fmt::format("ids of a step must be ({}), found ({})", options_.batch, fmt::join(ids.sizes(), ", ")));
  }
  ids_.copy_(ids);
  return step_greedy();
}

const at::Tensor& DecodeSession::step_greedy() {
  for (size_t i = 0; i < lengths().size(); ++i) {
    if (lengths()[i] >= options_.max_tokens)
      throw UsageError(fmt::format("sequence {} has {} tokens, and there is room for no more", i, lengths()[i]));
  }
  const Scope scope(model_->device());
  batch_->count_on_host();
  if (graph_ == nullptr) {
    compute_step();
  } else if (steps_ == 0) {
    graph_->warm_up([this] { compute_step(); });
  } else {
    if (steps_ == 1) graph_->record([this] { compute_step(); });
    graph_->replay();
  }
  ++steps_;
  return logits_;
}

/// What a graph records: nothing here waits for the device or depends on numbers of the host.
void DecodeSession::compute_step() {
  batch_->count_on_device();
  batch_->make_plans();
  at::Tensor h = model_->trunk().embed(ids_.unsqueeze(1));  // (B, 1, E)
  for (size_t i = 0; i < layers_.size(); ++i) {
    const DecoderLayer& layer = model_->layers()[i];
    const at::Tensor heads = layers_[i]->step(layer.attention_input(h));
    h = layer.add_mlp(layer.add_attention(h, layer.attention().output(heads)));
  }
  logits_ = model_->trunk().logits(h).select(1, 0);
  ids_.copy_(logits_.argmax(-1));
}

std::vector<int64_t> DecodeSession::next_ids() const {
  const at::Tensor ids = ids_.cpu();
  const int64_t* first = ids.const_data_ptr<int64_t>();
  return {first, first + ids.numel()};
}

std::vector<std::string> DecodeSession::explain() const {
  std::vector<std::string> lines;
  for (size_t first = 0, end = 0; first < choices_.size(); first = end) {
    const DecodeChoice& choice = choices_[first];
    while (end < choices_.size() && choices_[end].kernel == choice.kernel && choices_[end].why == choice.why) ++end;
    const std::string which =
        end == first + 1 ? fmt::format("layer {}", first) : fmt::format("layers {} to {}", first, end - 1);
    lines.push_back(fmt::format("{}: {}{}", which, name_of(choice.kernel),
                                choice.why.empty() ? "" : fmt::format(" ({})", choice.why)));
  }
  return lines;
}

std::string DecodeSession::kernel_name() const {
  std::vector<std::string> names;
  for (const DecodeChoice& choice : choices_) {
    const std::string name = name_of(choice.kernel);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

int64_t DecodeSession::kv_bytes_per_token() const {
  double bytes = 0;
  for (const auto& layer : layers_) bytes += layer->bytes_per_token();
  return static_cast<int64_t>(std::ceil(bytes));
}

int64_t DecodeSession::kv_bytes(int64_t tokens) const {
  double bytes = 0;
  for (const auto& layer : layers_)
    bytes += layer->bytes_per_token() * static_cast<double>(tokens) + static_cast<double>(layer->bytes_per_sequence());
  return static_cast<int64_t>(std::ceil(bytes));
}

bool DecodeSession::emulates_cache() const {
  if (options_.cache_format == CacheFormat::sixteen_bit) return false;
  for (size_t layer = 0; layer < choices_.size(); ++layer) {
    const bool latent = model_->config().layers[layer].kind == AttentionKind::latent;
    if (latent && choices_[layer].kernel == DecodeKernel::attend) return true;
  }
  return false;
}

int64_t DecodeSession::kv_bytes_allocated() const {
  int64_t bytes = 0;
  for (const auto& layer : layers_) bytes += layer->bytes_allocated();
  return bytes;
}

CachedRows DecodeSession::cached(int64_t layer, int64_t sequence) const {
  const Scope scope(model_->device());
  return layers_.at(static_cast<size_t>(layer))->cached(sequence);
}

}  // namespace cinch
