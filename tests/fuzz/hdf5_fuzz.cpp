// The first byte chooses: 0 gives the rest to the reader as it is; anything else makes the rest the table under a seal
// that matches, because no fuzzer guesses a digest, but whoever makes a hostile file can compute one.
#include <string>

#include "checkpoints/formats/hdf5_container.h"
#include "core/hdf5_seal.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static cinch::FuzzFile file;
  if (size == 0) return 0;
  const std::span<const uint8_t> rest(data + 1, size - 1);
  if (data[0] == 0) {
    file.set(rest);
  } else {
    static const std::vector<uint8_t> body(4096, 7);
    file.set(body);
    const std::string_view table(reinterpret_cast<const char*>(rest.data()), rest.size());
    cinch::seal_hdf5(file.path(), {{1024, 512}, {2048, 64}}, table);
  }
  cinch::exercise(cinch::hdf5_format(), file.path());
  return 0;
}
