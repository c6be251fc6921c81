#include "attention/kernels/cudnn/cuda/graph.h"

#include <cudnn_frontend.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>

// The frontend calls libcudnn through this, so that the plug-in can be loaded, and can say what is missing, without it.
void* cudnn_frontend::cudnn_dlhandle = nullptr;

namespace cinch::cudnn {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

constexpr int64_t kWorkspaceAlignment = 256;  // bytes

enum Uid : int64_t { kQ = 1, kK, kV, kOut, kStats, kGradOut, kGradQ, kGradK, kGradV };

/// Throws Error for a step that failed, without line breaks.
template <typename Error>
void check(fe::error_t error, const char* step) {
  if (error.is_good()) return;
  std::string text = std::string(step) + ": " + error.get_message();
  std::replace(text.begin(), text.end(), '\n', ' ');
  throw Error(text);
}

struct Array {
  const char* name;
  int64_t uid, heads, tokens, width;
  CinchCudnnStrides strides;
};

fe::graph::Tensor_attributes described(const CinchCudnnShape& shape, const Array& array) {
  const CinchCudnnStrides& strides = array.strides;
  return fe::graph::Tensor_attributes()
      .set_name(array.name)
      .set_uid(array.uid)
      .set_dim({shape.batch, array.heads, array.tokens, array.width})
      .set_stride({strides.batch, strides.head, strides.token, 1});
}

/// (B, H, T, 1) in fp32, contiguous.
fe::graph::Tensor_attributes stats_of(const CinchCudnnShape& shape) {
  const int64_t heads = shape.heads, queries = shape.queries;
  fe::graph::Tensor_attributes stats =
      described(shape, {"stats", kStats, heads, queries, 1, {heads * queries, queries, 1}});
  return stats.set_data_type(fe::DataType_t::FLOAT);
}

void set_output(const Tensor& tensor, const fe::graph::Tensor_attributes& as) {
  tensor->set_output(true).set_uid(as.get_uid()).set_dim(as.get_dim()).set_stride(as.get_stride());
  if (as.get_data_type() != fe::DataType_t::NOT_SET) tensor->set_data_type(as.get_data_type());
}

/// Query t sees keys up to t + S - T, and with a window those after t + S - T - window.
template <typename Attributes>
Attributes with_mask(const CinchCudnnShape& shape, Attributes attributes) {
  // Both alignments are one where T = S; cuDNN's kernels are simpler for the first.
  attributes.set_diagonal_alignment(shape.queries == shape.keys ? fe::DiagonalAlignment_t::TOP_LEFT
                                                                : fe::DiagonalAlignment_t::BOTTOM_RIGHT);
  attributes.set_diagonal_band_right_bound(0);
  if (shape.window > 0) attributes.set_diagonal_band_left_bound(static_cast<int>(shape.window));
  return attributes.set_attn_scale(shape.scale);
}

struct Inputs {
  Tensor q, k, v;
};

Inputs inputs_of(const CinchCudnnShape& shape, fe::graph::Graph& graph) {
  const int64_t width = shape.key_width;
  return {graph.tensor(described(shape, {"q", kQ, shape.heads, shape.queries, width, shape.q})),
          graph.tensor(described(shape, {"k", kK, shape.kv_heads, shape.keys, width, shape.k})),
          graph.tensor(described(shape, {"v", kV, shape.kv_heads, shape.keys, shape.value_width, shape.v}))};
}

void add_forward(const CinchCudnnShape& shape, fe::graph::Graph& graph) {
  const Inputs in = inputs_of(shape, graph);
  const bool with_stats = shape.pass == CINCH_CUDNN_FORWARD_STATS;
  const auto attributes = with_mask(shape, fe::graph::SDPA_attributes().set_name("attention"));
  const auto [out, stats] =
      graph.sdpa(in.q, in.k, in.v, fe::graph::SDPA_attributes(attributes).set_generate_stats(with_stats));
  set_output(out, described(shape, {"out", kOut, shape.heads, shape.queries, shape.value_width, shape.out}));
  if (with_stats) set_output(stats, stats_of(shape));
}

void add_backward(const CinchCudnnShape& shape, fe::graph::Graph& graph) {
  const Inputs in = inputs_of(shape, graph);
  const int64_t heads = shape.heads, queries = shape.queries, width = shape.key_width;
  const Tensor out = graph.tensor(described(shape, {"out", kOut, heads, queries, shape.value_width, shape.out}));
  const Tensor dout = graph.tensor(described(shape, {"dout", kGradOut, heads, queries, shape.value_width, shape.out}));
  const Tensor stats = graph.tensor(stats_of(shape));
  auto attributes = with_mask(shape, fe::graph::SDPA_backward_attributes().set_name("gradient"));
  attributes.set_deterministic_algorithm(shape.deterministic != 0);
  const auto [dq, dk, dv] = graph.sdpa_backward(in.q, in.k, in.v, out, dout, stats, attributes);
  set_output(dq, described(shape, {"dq", kGradQ, heads, queries, width, shape.dq}));
  set_output(dk, described(shape, {"dk", kGradK, shape.kv_heads, shape.keys, width, shape.dk}));
  set_output(dv, described(shape, {"dv", kGradV, shape.kv_heads, shape.keys, shape.value_width, shape.dv}));
}

std::shared_ptr<fe::DeviceProperties> properties_of(const char* json) {
  auto properties = std::make_shared<fe::DeviceProperties>();
  check<std::runtime_error>(properties->deserialize(std::vector<uint8_t>(json, json + std::strlen(json))),
                            "the device's properties");
  return properties;
}

/// The frontend lays its own arrays in front of the kernels' workspace, whatever alignment that then has. Deterministic
/// gradients have one, of B*H*T numbers; kernels store the matrix of scores behind it in vectors.
int64_t padding_of(const CinchCudnnShape& shape) {
  if (shape.deterministic == 0) return 0;
  const int64_t own = shape.batch * shape.heads * shape.queries * static_cast<int64_t>(sizeof(float));
  return (kWorkspaceAlignment - own % kWorkspaceAlignment) % kWorkspaceAlignment;
}

class GraphPlan : public Plan {
 public:
  GraphPlan(std::unique_ptr<fe::graph::Graph> graph, const CinchCudnnShape& shape)
      : graph_(std::move(graph)), pass_(shape.pass), padding_(padding_of(shape)) {
    check<std::runtime_error>(graph_->get_workspace_size(workspace_bytes_), "workspace size");
    // Else made by the first run, which two threads may be.
    check<std::runtime_error>(graph_->prepare_variant_pack_template(), "tensors");
  }

  uint64_t workspace_bytes() const override { return static_cast<uint64_t>(workspace_bytes_ + padding_); }

  std::string engine() const override {
    std::string name;
    check<std::runtime_error>(graph_->get_plan_name(name), "plan name");
    return name;
  }

  void run(cudnnHandle_t handle, const CinchCudnnTensors& tensors) const override {
    const auto writable = [](const void* read) { return const_cast<void*>(read); };  // cuDNN's pack has one kind
    std::unordered_map<int64_t, void*> pack = {
        {kQ, writable(tensors.q)}, {kK, writable(tensors.k)}, {kV, writable(tensors.v)}, {kOut, tensors.out}};
    if (pass_ != CINCH_CUDNN_FORWARD) pack[kStats] = tensors.stats;
    if (pass_ == CINCH_CUDNN_BACKWARD) {
      pack.insert(
          {{kGradOut, writable(tensors.dout)}, {kGradQ, tensors.dq}, {kGradK, tensors.dk}, {kGradV, tensors.dv}});
    }
    check<std::runtime_error>(graph_->execute(handle, pack, static_cast<char*>(tensors.workspace) + padding_),
                              "execution");
  }

  std::vector<uint8_t> save() const override {
    std::vector<uint8_t> bytes;
    check<std::runtime_error>(graph_->serialize(bytes), "serialisation");
    return bytes;
  }

 private:
  std::unique_ptr<fe::graph::Graph> graph_;
  const int32_t pass_;
  const int64_t padding_;
  int64_t workspace_bytes_ = 0;
};

void open_library() { fe::cudnn_dlhandle = library(); }

}  // namespace

std::unique_ptr<Plan> build_plan(const CinchCudnnShape& shape, const CinchCudnnTarget& target, cudnnHandle_t handle) {
  open_library();
  auto graph = std::make_unique<fe::graph::Graph>();
  graph->set_io_data_type(shape.type == CINCH_CUDNN_FP16 ? fe::DataType_t::HALF : fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT)
      .set_sm_version(target.compute_capability);
  if (target.properties != nullptr) graph->set_device_properties(properties_of(target.properties));
  shape.pass == CINCH_CUDNN_BACKWARD ? add_backward(shape, *graph) : add_forward(shape, *graph);
  check<Refused>(graph->validate(), "shape");
  check<Refused>(target.properties != nullptr ? graph->build_operation_graph() : graph->build_operation_graph(handle),
                 "operations");
  check<Refused>(graph->create_execution_plans({fe::HeurMode_t::A}), "heuristics");
  if (shape.deterministic != 0) graph->deselect_numeric_notes({fe::NumericalNote_t::NONDETERMINISTIC});
  check<Refused>(graph->check_support(), "support");
  check<Refused>(graph->build_plans(), "plan");
  return std::make_unique<GraphPlan>(std::move(graph), shape);
}

std::unique_ptr<Plan> load_plan(const std::vector<uint8_t>& bytes, const CinchCudnnShape& shape, cudnnHandle_t handle) {
  open_library();
  auto graph = std::make_unique<fe::graph::Graph>();
  check<std::runtime_error>(graph->deserialize(handle, bytes), "deserialisation");
  return std::make_unique<GraphPlan>(std::move(graph), shape);
}

}  // namespace cinch::cudnn
