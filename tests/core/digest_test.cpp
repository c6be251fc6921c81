#include "core/digest.h"

#include <gtest/gtest.h>

#include <string>

#include "core/files.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(Digest, KnownValues) {
  // The published digests of the empty string and of "abc" (FIPS 180-4; xxHash's own XXH3_128bits of an empty input).
  EXPECT_EQ(sha256_hex({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex(bytes_of("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(xxh3_hex({}), "99aa06d3014798d86001c324468d497f");
}

TEST(Digest, StreamingEqualsOneShot) {
  const std::string text(10000, 'x');
  Xxh3Digest digest;
  for (size_t i = 0; i < text.size(); i += 777)
    digest.update(bytes_of(text).subspan(i, std::min<size_t>(777, text.size() - i)));
  EXPECT_EQ(digest.hex(), xxh3_hex(bytes_of(text)));
  EXPECT_EQ(Xxh3Digest().hex(), xxh3_hex({}));
}

TEST(Digest, OfAFileLargerThanOnePiece) {
  const TempFolder folder;
  const std::string text((size_t{16} << 20) + 12345, 'y');
  write_text(folder / "a", text);
  EXPECT_EQ(sha256_hex_of_file(folder / "a"), sha256_hex(bytes_of(text)));
}

}  // namespace
}  // namespace cinch
