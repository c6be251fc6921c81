// The benchmark's times as JSON lines, in the form that bench/results/README.md describes.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>

#include <string>

namespace cinch::decode {

struct BenchLine {
  const char* attention;
  const char* kernel;
  int batch, context;
  bool ragged;
  int n_heads, n_kv_heads, head_dim, kv_lora_rank, qk_rope_head_dim, v_head_dim;
  int64_t cache_bytes;
  double us;
};

/// Without a file until `open`; writes nothing then.
class BenchLines {
 public:
  BenchLines() = default;
  BenchLines(const BenchLines&) = delete;
  ~BenchLines() {
    if (file_ != nullptr) fclose(file_);
  }

  bool open(const std::string& path, const std::string& commit) {
    int device = 0;
    cudaDeviceProp properties;
    if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&properties, device) != cudaSuccess)
      return false;
    device_ = properties.name;
    driver_ = driver_version();
    commit_ = commit;
    file_ = fopen(path.c_str(), "w");
    return file_ != nullptr;
  }

  /// copy: GB/s read + written of a copy in this run.
  void write(const BenchLine& line, double copy) {
    if (file_ == nullptr) return;
    const double rate = static_cast<double>(line.cache_bytes) / line.us * 1e-3;
    fprintf(file_, "{\"program\": \"decode_device_test\", \"device\": \"%s\", \"driver\": \"%s\", \"commit\": \"%s\", ",
            device_.c_str(), driver_.c_str(), commit_.c_str());
    fprintf(file_, "\"copy_gb_per_s\": %.1f, \"attention\": \"%s\", \"kernel\": \"%s\", ", copy, line.attention,
            line.kernel);
    fprintf(file_, "\"layout\": \"paged\", \"dtype\": \"bf16\", \"batch\": %d, \"context\": %d, \"ragged\": %s, ",
            line.batch, line.context, line.ragged ? "true" : "false");
    fprintf(file_, "\"n_heads\": %d, \"n_kv_heads\": %d, \"head_dim\": %d, \"kv_lora_rank\": %d, ", line.n_heads,
            line.n_kv_heads, line.head_dim, line.kv_lora_rank);
    fprintf(file_, "\"qk_rope_head_dim\": %d, \"v_head_dim\": %d, \"cache_bytes\": %lld, \"status\": \"ok\", ",
            line.qk_rope_head_dim, line.v_head_dim, static_cast<long long>(line.cache_bytes));
    fprintf(file_, "\"us\": %.3f, \"gb_per_s\": %.1f, \"share_of_copy\": %.4f}\n", line.us, rate, rate / copy);
    fflush(file_);
  }

 private:
  /// Of the kernel module; the runtime knows only which CUDA version the driver supports.
  static std::string driver_version() {
    std::string version = "unknown";
    if (FILE* file = fopen("/sys/module/nvidia/version", "r")) {
      char text[64] = "";
      if (fscanf(file, "%63s", text) == 1) version = text;
      fclose(file);
    }
    return version;
  }

  FILE* file_ = nullptr;
  std::string device_, driver_, commit_;
};

}  // namespace cinch::decode
