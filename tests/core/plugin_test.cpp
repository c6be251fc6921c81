#include "core/plugin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/errors.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::HasSubstr;

std::string message_of_opening(const std::filesystem::path& file) {
  try {
    open_plugin(file);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::failed);
    EXPECT_THAT(error.help(), HasSubstr("--device cpu"));
    return error.what();
  }
  return "opened";
}

TEST(Plugin, AnAbsentFileIsNamed) {
  const TempFolder folder;
  EXPECT_THAT(message_of_opening(folder / "libnone.so"), HasSubstr((folder / "libnone.so").string()));
}

TEST(Plugin, AFileThatIsNoLibraryIsNamed) {
  const TempFolder folder;
  std::ofstream(folder / "libtext.so") << "not a library";
  EXPECT_THAT(message_of_opening(folder / "libtext.so"), HasSubstr("libtext.so"));
}

// Holds on every machine: without a plug-in, driver or device the reason is told; with one, it is described and
// measured.
TEST(Plugin, DevicesAreDescribedOrTheReasonIsTold) {
  try {
    for (const CinchCudaDevice& device : describe_cuda_devices()) {
      EXPECT_STRNE(device.name, "");
      EXPECT_GT(device.total_memory, 0u);
      EXPECT_LE(device.free_memory, device.total_memory);
      EXPECT_GE(device.compute_major, 7);
      EXPECT_GT(device.copy_bytes_per_second, 1e9);
    }
  } catch (const Error& error) {
    EXPECT_THAT(std::string(error.what()), testing::AnyOf(HasSubstr("libcinch_cuda.so"), HasSubstr("no CUDA device")));
    EXPECT_THAT(error.help(), HasSubstr("--device cpu"));
  }
}

}  // namespace
}  // namespace cinch
