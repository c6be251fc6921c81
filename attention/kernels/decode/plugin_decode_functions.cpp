#include "attention/kernels/decode/decode_functions.h"
#include "attention/plugin_kernel.h"

namespace cinch {
namespace {

template <typename Function>
void find(const char* name, Function& function) {
  function = reinterpret_cast<Function>(find_plugin_kernel(name));
}

DecodeFunctions found_functions() {
  DecodeFunctions functions{};
  find("cinch_decode_sizes", functions.sizes);
  find("cinch_decode_plan", functions.plan);
  find("cinch_decode_run", functions.run);
  find("cinch_cache_append", functions.append);
  return functions;
}

}  // namespace

const DecodeFunctions* plugin_decode_functions() {
  static const DecodeFunctions functions = found_functions();
  const bool all = functions.sizes != nullptr && functions.plan != nullptr && functions.run != nullptr &&
                   functions.append != nullptr;
  return all ? &functions : nullptr;
}

}  // namespace cinch
