#include "checkpoints/formats/gguf.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static cinch::FuzzFile file;
  file.set({data, size});
  cinch::exercise(cinch::gguf_format(), file.path());
  return 0;
}
