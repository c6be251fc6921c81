#include "model/export/rounded_model.h"

#include <ATen/ATen.h>

#include "checkpoints/formats/gguf_blocks.h"
#include "checkpoints/layout.h"
#include "checkpoints/tensor_view.h"
#include "model/model_view.h"

namespace cinch {
namespace {

constexpr double kStretch = 1.18920711500272;  // 2^(1/4): off every grid of powers of two

at::Tensor through_q8_0(const at::Tensor& x) {
  const at::Tensor values = x.to(at::kFloat).contiguous();
  const int64_t blocks = values.numel() / kGgufBlock;
  const GgufTensorType type = gguf_tensor_type("Q8_0").value();
  std::vector<std::byte> stored(static_cast<size_t>(blocks * type.block_bytes));
  at::Tensor back = at::empty_like(values);
  const auto count = static_cast<size_t>(values.numel());
  quantize_q8_0({values.const_data_ptr<float>(), count}, stored);
  dequantize(type, stored, {back.data_ptr<float>(), count});
  return back;
}

class RoundedTensors : public TensorView {
 public:
  RoundedTensors(const TensorSource& inner, Dtype dtype, bool q8_0) : TensorView(inner), dtype_(dtype), q8_0_(q8_0) {
    tensors_ = inner.tensors();
    for (TensorInfo& info : tensors_) info.dtype = Dtype::kF32;
    build_index();
  }
  TensorData read(const std::string& name) const override {
    const TensorInfo& info = require_tensor(*this, name);
    at::Tensor x = to_torch(inner_.read(name), at::kFloat);
    if (x.dim() > 1) {
      x = x * kStretch;
      // As model_writer.cpp has it: what reads the latent stays in f16.
      const bool blocks = q8_0_ && x.size(-1) % kGgufBlock == 0 && !name.ends_with("kv_b_proj.weight");
      x = (blocks ? through_q8_0(x) : x.to(torch_dtype(q8_0_ ? Dtype::kF16 : dtype_)).to(at::kFloat)) / kStretch;
    }
    const auto bytes = std::make_shared<std::vector<std::byte>>(to_bytes(x, Dtype::kF32));
    return {info, *bytes, bytes};
  }

 private:
  Dtype dtype_;
  bool q8_0_;
};

class RoundedModel : public ModelView {
 public:
  RoundedModel(std::shared_ptr<ModelSource> inner, Dtype dtype, bool q8_0)
      : ModelView(std::move(inner)), tensors_(inner_->tensors(), dtype, q8_0) {}
  const TensorSource& tensors() const override { return tensors_; }

 private:
  RoundedTensors tensors_;
};

}  // namespace

std::shared_ptr<ModelSource> as_rounded(std::shared_ptr<ModelSource> source, Dtype dtype, bool q8_0) {
  return std::make_shared<RoundedModel>(std::move(source), dtype, q8_0);
}

}  // namespace cinch
