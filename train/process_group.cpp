#include "train/process_group.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

// The header is empty without it. LibTorch has Gloo inside, but not Gloo's headers, of which it needs only the names of
// a few types: any version's do.
#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "core/errors.h"
#include "core/plugin.h"
#include "train/cuda/nccl_abi.h"

namespace cinch {
namespace {

class SingleProcess : public ProcessGroup {
 public:
  int rank() const override { return 0; }
  int world() const override { return 1; }
  std::string backend() const override { return "none"; }
  Finish all_reduce(const at::Tensor&) override {
    return [] {};
  }
  Finish reduce_scatter(const at::Tensor& share, const at::Tensor& whole) override { return copied(share, whole); }
  Finish all_gather(const at::Tensor& whole, const at::Tensor& share) override { return copied(whole, share); }
  void barrier() override {}
  void sum(std::vector<double>&) override {}
  void largest(std::vector<double>&) override {}

 private:
  static Finish copied(const at::Tensor& to, const at::Tensor& from) {
    if (to.const_data_ptr() != from.const_data_ptr()) to.copy_(from);
    return [] {};
  }
};

/// Through c10d. Operations on tensors go to `tensors`, the host's numbers to `host`, which are the same where both are
/// on the CPU.
class ManyProcesses : public ProcessGroup {
 public:
  ManyProcesses(const Rendezvous& where, c10::intrusive_ptr<c10d::Store> store,
                c10::intrusive_ptr<c10d::Backend> tensors, c10::intrusive_ptr<c10d::Backend> host)
      : where_(where), store_(std::move(store)), tensors_(std::move(tensors)), host_(std::move(host)) {}

  int rank() const override { return where_.rank; }
  int world() const override { return where_.world; }
  std::string backend() const override { return tensors_->getBackendName(); }

  Finish all_reduce(const at::Tensor& tensor) override {
    std::vector<at::Tensor> tensors = {tensor};
    return finish(tensors_->allreduce(tensors), {tensor});
  }
  Finish reduce_scatter(const at::Tensor& share, const at::Tensor& whole) override {
    at::Tensor to = share, from = whole;
    return finish(tensors_->_reduce_scatter_base(to, from), {share, whole});
  }
  Finish all_gather(const at::Tensor& whole, const at::Tensor& share) override {
    // Bytes: a copy needs no type, and Gloo does not know them all.
    at::Tensor to = whole.view(at::kByte), from = share.view(at::kByte);
    return finish(tensors_->_allgather_base(to, from), {to, from});
  }
  void barrier() override {
    std::vector<double> nothing = {0};
    sum(nothing);
  }
  void sum(std::vector<double>& values) override { reduce(values, c10d::ReduceOp::SUM); }
  void largest(std::vector<double>& values) override { reduce(values, c10d::ReduceOp::MAX); }

 private:
  Finish finish(c10::intrusive_ptr<c10d::Work> work, std::vector<at::Tensor> kept) const {
    return [this, work = std::move(work), kept = std::move(kept)] { wait(*work); };
  }
  void wait(c10d::Work& work) const {
    try {
      work.wait();
    } catch (const std::exception& error) {
      const std::string what = error.what();
      throw ResourceError(fmt::format("process {} of {} lost the others: {}", where_.rank, where_.world,
                                      what.substr(0, what.find('\n'))),
                          "look at what the process that ended first said; the last saved state is whole, and --resume "
                          "goes on from it");
    }
  }
  void reduce(std::vector<double>& values, c10d::ReduceOp::RedOpType operation) const {
    std::vector<at::Tensor> tensors = {
        at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::TensorOptions(at::kDouble))};
    c10d::AllreduceOptions options;
    options.reduceOp = operation;
    wait(*host_->allreduce(tensors, options));
  }

  Rendezvous where_;
  c10::intrusive_ptr<c10d::Store> store_;  // outlives the groups
  c10::intrusive_ptr<c10d::Backend> tensors_, host_;
};

c10::intrusive_ptr<c10d::Store> open_store(const Rendezvous& where) {
  c10::intrusive_ptr<c10d::Store> store;
  if (!where.file.empty()) {
    store = c10::make_intrusive<c10d::FileStore>(where.file, where.world);
  } else {
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(where.port);
    options.isServer = where.hosts_store;
    options.numWorkers = static_cast<size_t>(where.world);
    options.waitWorkers = false;
    options.timeout = where.timeout;
    store = c10::make_intrusive<c10d::TCPStore>(where.host, options);
  }
  store->setTimeout(where.timeout);
  if (where.prefix.empty()) return store;
  return c10::make_intrusive<c10d::PrefixStore>(where.prefix, store);
}

c10::intrusive_ptr<c10d::Backend> gloo(const Rendezvous& where, const c10::intrusive_ptr<c10d::Store>& store) {
  const auto options = c10d::ProcessGroupGloo::Options::create(where.timeout);
  options->devices = {where.interface.empty() ? c10d::ProcessGroupGloo::createDefaultDevice()
                                              : c10d::ProcessGroupGloo::createDeviceForInterface(where.interface)};
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, where.rank, where.world, options);
}

/// Through the plug-in, as this program links nothing of CUDA.
c10::intrusive_ptr<c10d::Backend> nccl(const Rendezvous& where, const c10::intrusive_ptr<c10d::Store>& store) {
  load_cuda_plugin();
  const auto make =
      reinterpret_cast<decltype(&cinch_nccl_group)>(find_in_plugin("libcinch_nccl.so", "cinch_nccl_group"));
  c10::intrusive_ptr<c10d::Backend> group;
  make(store, where.rank, where.world, where.timeout, &group);
  return group;
}

}  // namespace

std::shared_ptr<ProcessGroup> single_process() { return std::make_shared<SingleProcess>(); }

std::shared_ptr<ProcessGroup> join_processes(const Rendezvous& where, at::Device device) {
  if (where.world < 2) return single_process();
  try {
    const auto store = open_store(where);
    const auto host = gloo(where, c10::make_intrusive<c10d::PrefixStore>("host", store));
    const auto tensors = device.is_cpu() ? host : nccl(where, c10::make_intrusive<c10d::PrefixStore>("nccl", store));
    auto processes = std::make_shared<ManyProcesses>(where, store, tensors, host);
    processes->barrier();
    return processes;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    const std::string what = error.what();
    throw ResourceError(
        fmt::format("process {} of {} did not meet the others at {}: {}", where.rank, where.world,
                    where.file.empty() ? fmt::format("{}:{}", where.host, where.port) : where.file,
                    what.substr(0, what.find('\n'))),
        "check that all processes run and reach that address (GLOO_SOCKET_IFNAME names a network interface)");
  }
}

}  // namespace cinch
