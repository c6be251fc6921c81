#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cstring>

#include "core/errors.h"
#include "model/model_source.h"

namespace cinch {

at::ScalarType torch_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF64:
      return at::kDouble;
    case Dtype::kF32:
      return at::kFloat;
    case Dtype::kF16:
      return at::kHalf;
    case Dtype::kBF16:
      return at::kBFloat16;
    case Dtype::kI64:
      return at::kLong;
    case Dtype::kI32:
      return at::kInt;
    case Dtype::kI16:
      return at::kShort;
    case Dtype::kI8:
      return at::kChar;
    case Dtype::kU8:
      return at::kByte;
    case Dtype::kBool:
      return at::kBool;
    default:
      throw UnsupportedError(fmt::format("tensors of type {} are not weights that cinch can use", dtype_name(dtype)));
  }
}

Dtype file_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return Dtype::kF64;
    case at::kFloat:
      return Dtype::kF32;
    case at::kHalf:
      return Dtype::kF16;
    case at::kBFloat16:
      return Dtype::kBF16;
    default:
      throw UnsupportedError(fmt::format("weights of torch type {} are not written", at::toString(dtype)));
  }
}

at::Tensor to_torch(const TensorData& data, at::ScalarType dtype) {
  const at::ScalarType stored = torch_dtype(data.info.dtype);
  const auto address = reinterpret_cast<uintptr_t>(data.bytes.data());
  at::Tensor view;
  if (data.bytes.empty()) {
    view = at::empty(data.info.shape, stored);
  } else if (address % at::elementSize(stored) == 0) {
    // The deleter only keeps the mapping alive; nothing writes through this tensor.
    view = at::from_blob(
        const_cast<std::byte*>(data.bytes.data()), data.info.shape, [owner = data.owner](void*) {},
        at::TensorOptions(stored));
  } else {
    view = at::empty(data.info.shape, stored);
    std::memcpy(view.data_ptr(), data.bytes.data(), data.bytes.size());
  }
  return view.to(dtype);
}

std::vector<std::byte> to_bytes(const at::Tensor& tensor, Dtype dtype) {
  const at::Tensor ready = tensor.to(at::kCPU, torch_dtype(dtype)).contiguous();
  std::vector<std::byte> bytes(ready.nbytes());
  if (!bytes.empty()) std::memcpy(bytes.data(), ready.data_ptr(), bytes.size());
  return bytes;
}

}  // namespace cinch
