#include "tests/support/device/test_device.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace cinch {
namespace {

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kType, 0);

struct TestDeviceGuard : c10::impl::NoOpDeviceGuardImpl<kType> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, TestDeviceGuard)

/// What autograd asks before it runs backwards on a device.
struct TestDeviceHooks : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};

/// Between an address and one that no process can read.
void* flipped(void* address) {
  constexpr uintptr_t kUnreadable = uintptr_t{1} << 62;
  return address == nullptr ? nullptr : reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) ^ kUnreadable);
}

/// The memory of `storage` as seen from the other device; keeps it alive.
at::DataPtr seen_from(const c10::Storage& storage, c10::Device device) {
  return {flipped(storage.mutable_data()), new c10::Storage(storage),
          [](void* held) { delete static_cast<c10::Storage*>(held); }, device};
}

c10::Storage storage_seen_from(const c10::Storage& storage, c10::Device device) {
  return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), storage.nbytes(),
                                               seen_from(storage, device), at::getCPUAllocator(),
                                               /*resizable=*/true);
}

at::Tensor with_layout(at::Tensor tensor, const at::Tensor& of) {
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(of.sizes(), of.strides(), of.storage_offset());
  return tensor;
}

/// The tensors of one call, on the CPU, and the way back for its results.
class Call {
 public:
  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device() != kDevice) return tensor;
    TORCH_CHECK(!tensor.is_conj() && !tensor.is_neg(), "the test device takes no lazy conjugates");
    for (const Pair& pair : pairs_) {
      if (pair.own.is_same(tensor)) return pair.cpu;
    }
    c10::Storage storage = cpu_storage(tensor.storage());
    pairs_.push_back(
        {tensor, with_layout(at::detail::make_tensor<at::TensorImpl>(
                                 std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype()),
                             tensor)});
    return pairs_.back().cpu;
  }

  /// A result: an argument itself, a view of one, or new.
  at::Tensor from_cpu(const at::Tensor& result) const {
    if (!result.defined() || !result.is_cpu()) return result;
    for (const Pair& pair : pairs_) {
      if (pair.cpu.is_same(result)) return pair.own;
    }
    for (const Pair& pair : pairs_) {
      if (!pair.cpu.storage().is_alias_of(result.storage())) continue;
      return with_layout(
          at::detail::make_tensor<at::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(pair.own.storage()),
                                                  pair.own.key_set(), result.dtype()),
          result);
    }
    return with_layout(
        at::detail::make_tensor<at::TensorImpl>(storage_seen_from(result.storage(), kDevice),
                                                c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), result.dtype()),
        result);
  }

  /// Sizes and memory of arguments that the call has resized.
  void follow_resizes() const {
    for (const Pair& pair : pairs_) {
      c10::StorageImpl* own = pair.own.storage().unsafeGetStorageImpl();
      const c10::Storage& cpu = pair.cpu.storage();
      if (flipped(own->mutable_data()) != cpu.mutable_data()) {
        own->set_data_ptr_noswap(seen_from(cpu, kDevice));
        own->set_nbytes(cpu.nbytes());
      }
      if (pair.own.sizes() != pair.cpu.sizes() || pair.own.strides() != pair.cpu.strides())
        with_layout(pair.own, pair.cpu);
    }
  }

 private:
  struct Pair {
    at::Tensor own, cpu;
  };

  c10::Storage cpu_storage(const c10::Storage& own) const {
    for (const Pair& pair : pairs_) {
      if (pair.own.storage().unsafeGetStorageImpl() == own.unsafeGetStorageImpl()) return pair.cpu.storage();
    }
    return storage_seen_from(own, c10::kCPU);
  }

  std::vector<Pair> pairs_;
};

void check_place(const c10::OperatorHandle& op, const c10::Argument& argument, const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device() == kDevice) return;
  const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  TORCH_CHECK(tensor.dim() == 0 && !written, "Expected all tensors to be on the same device, but argument ",
              argument.name(), " of ", op.schema().name(), " is on ", tensor.device(), " with sizes ", tensor.sizes());
}

/// Any operation: checks where its tensors are, and runs it on the CPU.
void compute_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  Call call;
  const auto replaced = [&](const c10::Argument& argument, const at::Tensor& tensor) {
    check_place(op, argument, tensor);
    return call.to_cpu(tensor);
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    c10::IValue& value = (*stack)[stack->size() - arguments.size() + i];
    if (value.isTensor()) {
      value = replaced(arguments[i], value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(replaced(arguments[i], tensor));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional(replaced(arguments[i], *tensor)) : std::nullopt);
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    }
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(stack);
  }
  call.follow_resizes();
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.from_cpu(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(call.from_cpu(tensor));
      value = list;
    }
  }
}

/// What copy_ becomes between devices and on this one.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  Call call;
  const at::AutoDispatchBelowADInplaceOrView below;
  call.to_cpu(to).copy_(call.to_cpu(from));
  return to;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) { library.impl("_copy_from", &copy_from); }

}  // namespace

at::Device test_device() {
  // Only for tests that ask for it: to autograd it is then the process's one accelerator.
  static TestDeviceHooks hooks;
  [[maybe_unused]] static const bool registered = [] {
    c10::register_privateuse1_backend("testdevice");
    at::RegisterPrivateUse1HooksInterface(&hooks);
    return true;
  }();
  return kDevice;
}

}  // namespace cinch
