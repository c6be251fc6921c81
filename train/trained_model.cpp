#include "train/trained_model.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <utility>

#include "core/errors.h"
#include "model/decoder_model.h"

namespace cinch {
namespace {

std::string head_tensor(const ModelConfig& config, const ModelFamily& family) {
  return config.tie_word_embeddings ? family.embedding_name() : family.head_name();
}

at::Tensor final_norm(const ModelConfig& config, const ModelFamily& family, const at::Tensor& h,
                      const TensorReader& read) {
  return rms_norm(h, read(family.final_norm_name()), config.rms_norm_eps, config.norm_offset);
}

using Shapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

}  // namespace

size_t TrainedModel::unit_of(const WeightSpec& spec) const {
  if (spec.layer >= 0) return static_cast<size_t>(1 + spec.layer);
  return spec.name == source_->family().embedding_name() ? 0 : static_cast<size_t>(config().n_layers + 1);
}

TrainedModel::TrainedModel(std::shared_ptr<ModelSource> source, const Options& options,
                           std::shared_ptr<ProcessGroup> group)
    : source_(std::move(source)), options_(options), group_(std::move(group)) {
  const at::ScalarType master = options.compute == at::kDouble ? at::kDouble : at::kFloat;
  const auto count = static_cast<size_t>(config().n_layers + 2);
  std::vector<Shapes> trained(count), frozen(count);
  for (const WeightSpec& spec : source_->family().weights(config())) {
    const size_t unit = unit_of(spec);
    if (options.trainable == Trainable::all || spec.attention) {
      places_[spec.name] = {unit, trained[unit].size()};
      parameters_.push_back({spec.name, spec.shape, spec.attention, unit, trained[unit].size()});
      trained[unit].emplace_back(spec.name, spec.shape);
    } else {
      frozen[unit].emplace_back(spec.name, spec.shape);
    }
  }
  const bool share_frozen = options.zero.weights() && group_->world() > 1;
  for (size_t u = 0; u < count; ++u) {
    const std::string name = u == 0 ? "embedding" : u + 1 == count ? "head" : fmt::format("layer_{}", u - 1);
    WeightUnit& unit = units_.emplace_back(
        name, FlatLayout(trained[u], group_->world()),
        WeightUnit::Options{
            .compute = options.compute, .master = master, .device = options.device, .zero = options.zero},
        group_);
    for (size_t i = 0; i < trained[u].size(); ++i) {
      unit.set(i, source_->tensor(trained[u][i].first, master));
      source_->tensors().release(trained[u][i].first);
    }
    if (share_frozen) {
      FlatWeights& weights = frozen_units_.emplace_back(FlatLayout(frozen[u], group_->world()), options.compute,
                                                        options.device, group_, /*sharded=*/true);
      for (size_t i = 0; i < frozen[u].size(); ++i) {
        weights.set(i, source_->tensor(frozen[u][i].first, options.compute));
        source_->tensors().release(frozen[u][i].first);
        frozen_[frozen[u][i].first] = weights.weight(i);
      }
    } else {
      for (const auto& [weight, shape] : frozen[u])
        frozen_[weight] = source_->tensor(weight, options.compute).to(options.device);
    }
  }
}

const at::Tensor& TrainedModel::weight(const std::string& name) const {
  const auto place = places_.find(name);
  return place == places_.end() ? frozen_.at(name) : units_[place->second.first].leaf(place->second.second);
}

std::vector<FlatWeights*> TrainedModel::buffers(size_t unit, const Teacher* teacher) {
  std::vector<FlatWeights*> result = {&units_[unit].values()};
  if (!frozen_units_.empty()) result.push_back(&frozen_units_[unit]);
  if (teacher != nullptr && !teacher->units_.empty()) result.push_back(&teacher->units_[unit]);
  return result;
}

void TrainedModel::start_use(size_t unit, const Teacher* teacher) {
  for (FlatWeights* weights : buffers(unit, teacher)) weights->start_gather();
}

void TrainedModel::use(size_t unit, const Teacher* teacher) {
  for (FlatWeights* weights : buffers(unit, teacher)) weights->gather();
}

void TrainedModel::release(size_t unit, const Teacher* teacher) {
  for (FlatWeights* weights : buffers(unit, teacher)) weights->release();
}

at::Tensor TrainedModel::run_layer(int64_t layer, const at::Tensor& h, const at::Tensor& documents) const {
  const auto read = [this](const std::string& name) { return weight(name); };
  return DecoderLayer(config(), layer, source_->family().read_layer(config(), layer, read))
      .forward(h, 0, 0, nullptr, documents);
}

std::pair<at::Tensor, at::Tensor> TrainedModel::run_layers(const Input& input, const Teacher* teacher,
                                                           std::vector<Kept>* kept) {
  const auto read = [this](const std::string& name) { return weight(name); };
  const int64_t layers = config().n_layers;
  use(0, teacher);
  if (layers > 0) start_use(1, teacher);
  at::Tensor h;
  {
    // ModelTrunk also names the head and the final norm, which it does not touch here.
    const at::AutoGradMode recording(kept != nullptr && is_trained(source_->family().embedding_name()));
    h = ModelTrunk(config(), source_->family(), read).embed(input.ids);
  }
  at::Tensor t;
  const auto teacher_read = [teacher](const std::string& name) { return teacher->weight(name); };
  if (teacher != nullptr) {
    const at::NoGradGuard no_grad;
    t = ModelTrunk(teacher->config(), teacher->family(), teacher_read).embed(input.ids);
  }
  if (kept != nullptr) kept->push_back({{}, h});
  const bool tied = config().tie_word_embeddings || (teacher != nullptr && teacher->config().tie_word_embeddings);
  if (!tied) release(0, teacher);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const auto unit = static_cast<size_t>(1 + layer);
    use(unit, teacher);
    start_use(unit + 1, teacher);
    if (teacher != nullptr) {
      const at::NoGradGuard no_grad;
      t = DecoderLayer(teacher->config(), layer, teacher->family().read_layer(teacher->config(), layer, teacher_read))
              .forward(t, 0, 0, nullptr, input.documents);
    }
    if (kept == nullptr) {
      const at::NoGradGuard no_grad;
      h = run_layer(layer, h, input.documents);
    } else {
      const at::Tensor before = h.detach().requires_grad_(layer > 0 || h.requires_grad());
      const at::AutoGradMode recording(!options_.recompute);
      const at::Tensor after = run_layer(layer, before, input.documents);
      kept->push_back({before, options_.recompute ? at::Tensor() : after});
      h = after.detach();
    }
    release(unit, teacher);
  }
  use(last_unit(), teacher);
  return {h, t};
}

FinalStates TrainedModel::final_states(const at::Tensor& hidden, const at::Tensor& teacher_hidden,
                                       const Teacher* teacher) const {
  const ModelFamily& family = source_->family();
  const auto read = [this](const std::string& name) { return weight(name); };
  FinalStates states = {final_norm(config(), family, hidden, read), weight(head_tensor(config(), family)), {}, {}};
  if (teacher != nullptr) {
    const at::NoGradGuard no_grad;
    const auto teacher_read = [teacher](const std::string& name) { return teacher->weight(name); };
    states.teacher_hidden = final_norm(teacher->config(), teacher->family(), teacher_hidden, teacher_read);
    states.teacher_head = teacher->weight(head_tensor(teacher->config(), teacher->family()));
  }
  return states;
}

FinalStates TrainedModel::forward(const Input& input, const Teacher* teacher) {
  const at::NoGradGuard no_grad;
  const auto [h, t] = run_layers(input, teacher, nullptr);
  FinalStates states = final_states(h, t, teacher);
  if (options_.zero.weights()) {  // whose memory goes
    states.head = states.head.clone();
    if (teacher != nullptr) states.teacher_head = states.teacher_head.clone();
  }
  release(last_unit(), teacher);
  release(0, teacher);
  return states;
}

void TrainedModel::accumulate(const Input& input, const Teacher* teacher, const Loss& loss, bool last) {
  std::vector<Kept> kept;
  const auto [h, t] = run_layers(input, teacher, &kept);
  at::Tensor gradient;
  {
    const at::Tensor top = h.detach().requires_grad_(true);
    loss(final_states(top, t, teacher)).backward();
    gradient = top.grad();
  }
  collect(last_unit(), last);
  release(last_unit(), teacher);
  for (int64_t layer = config().n_layers - 1; layer >= 0; --layer) {
    const auto unit = static_cast<size_t>(1 + layer);
    use(unit, nullptr);
    if (layer > 0) start_use(unit - 1, nullptr);
    Kept part = std::move(kept[unit]);
    kept.pop_back();
    if (options_.recompute) part.after = run_layer(layer, part.before, input.documents);
    torch::autograd::backward({part.after}, {gradient});
    gradient = part.before.grad();
    part = {};
    collect(unit, last);
    release(unit, nullptr);
  }
  if (kept[0].after.requires_grad()) torch::autograd::backward({kept[0].after}, {gradient});
  collect(0, last);
  release(0, teacher);
}

at::Tensor TrainedModel::accumulate_local(const Input& input, const Teacher& teacher, const at::Tensor& weights,
                                          bool last) {
  const auto read = [this](const std::string& name) { return this->weight(name); };
  const auto teacher_read = [&teacher](const std::string& name) { return teacher.weight(name); };
  const int64_t layers = config().n_layers;
  at::Tensor t, sum = at::zeros({}, at::TensorOptions(at::kDouble).device(options_.device));
  use(0, &teacher);
  {
    const at::NoGradGuard no_grad;
    t = ModelTrunk(teacher.config(), teacher.family(), teacher_read).embed(input.ids);
  }
  collect(0, last);
  release(0, &teacher);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const auto unit = static_cast<size_t>(1 + layer);
    use(unit, &teacher);
    if (layer + 1 < layers) start_use(unit + 1, &teacher);
    const DecoderLayer original(teacher.config(), layer,
                                teacher.family().read_layer(teacher.config(), layer, teacher_read));
    const DecoderLayer own(config(), layer, source_->family().read_layer(config(), layer, read));
    at::Tensor x, target;
    {
      const at::NoGradGuard no_grad;
      x = original.attention_input(t);
      target = original.attention().forward(x, 0, 0, nullptr, input.documents);
      t = original.add_mlp(original.add_attention(t, target));
    }
    const at::ScalarType wide = options_.compute == at::kDouble ? at::kDouble : at::kFloat;
    const at::Tensor aim = target.to(wide);
    const at::Tensor off = own.attention().forward(x, 0, 0, nullptr, input.documents).to(wide) - aim;
    const at::Tensor errors = off.square().sum({1, 2}) / aim.square().sum({1, 2}).clamp_min(1e-30);  // (B)
    const at::Tensor error = (errors * weights.to(errors.options())).sum();
    error.backward();
    sum += error.detach();
    collect(unit, last);
    release(unit, &teacher);
  }
  collect(last_unit(), last);
  return sum / static_cast<double>(layers);
}

void TrainedModel::collect(size_t unit, bool last) {
  WeightUnit* const before = std::exchange(reducing_, &units_[unit]);
  units_[unit].collect(last);
  if (before != nullptr && before != reducing_) before->finish_reduction();
}

void TrainedModel::finish_reductions() {
  for (WeightUnit& unit : units_) unit.finish_reduction();
}

void TrainedModel::visit_trained(const std::function<void(const std::string&, const at::Tensor&)>& visit) const {
  for (const WeightUnit& unit : units_) {
    const at::Tensor whole = unit.whole_master().cpu();
    for (size_t i = 0; i < unit.layout().entries().size(); ++i)
      visit(unit.layout().entries()[i].name, unit.entry(whole, i).detach());
  }
}

Teacher::Teacher(std::shared_ptr<ModelSource> source, const TrainedModel& student)
    : source_(std::move(source)), student_(&student) {
  const ModelConfig& other = student.config();
  if (config().vocab_size != other.vocab_size) {
    throw UnsupportedError(
        fmt::format("the teacher has a vocabulary of {}, the student one of {}", config().vocab_size, other.vocab_size),
        "take the model that the student was converted from");
  }
  if (config().n_layers != other.n_layers) {
    throw UnsupportedError(fmt::format("the teacher has {} layers, the student {}", config().n_layers, other.n_layers),
                           "take the model that the student was converted from");
  }
  const at::ScalarType compute = student.options().compute;
  const auto shares = [&](const WeightSpec& spec) {
    if (!student.frozen_.contains(spec.name)) return false;
    // From the files: the student may hold only its share of it.
    const at::Tensor own = source_->tensor(spec.name, compute), others = student.source().tensor(spec.name, compute);
    return own.sizes() == others.sizes() && at::equal(own, others);
  };
  std::vector<Shapes> own(static_cast<size_t>(config().n_layers + 2));
  for (const WeightSpec& spec : source_->family().weights(config())) {
    shapes_[spec.name] = spec.shape;
    if (shares(spec)) {
      source_->tensors().release(spec.name);
    } else {
      own[student.unit_of(spec)].emplace_back(spec.name, spec.shape);
    }
  }
  const bool sharded = !student.frozen_units_.empty();
  for (const Shapes& unit : own) {
    const FlatLayout layout(unit, student.group()->world());
    if (sharded) units_.emplace_back(layout, compute, student.options().device, student.group(), true);
    for (size_t i = 0; i < unit.size(); ++i) {
      at::Tensor value = source_->tensor(unit[i].first, compute).to(student.options().device);
      own_bytes_ += static_cast<int64_t>(value.nbytes());
      if (sharded) {
        units_.back().set(i, value);
        value = units_.back().weight(i);
      }
      weights_[unit[i].first] = std::move(value);
    }
  }
}

bool Teacher::has(const std::string& name, const std::vector<int64_t>& shape) const {
  const auto found = shapes_.find(name);
  return found != shapes_.end() && found->second == shape;
}

const at::Tensor& Teacher::weight(const std::string& name) const {
  const auto own = weights_.find(name);
  return own == weights_.end() ? student_->weight(name) : own->second;
}

}  // namespace cinch
