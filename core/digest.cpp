#include "core/digest.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <memory>

#include "core/errors.h"
#include "core/files.h"

namespace cinch {
namespace {

std::string to_hex(std::span<const unsigned char> bytes) {
  std::string text;
  for (const unsigned char byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

std::string canonical(XXH128_hash_t hash) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, hash);
  return to_hex(bytes.digest);
}

}  // namespace

struct Xxh3Digest::State {
  XXH3_state_t* value = XXH3_createState();
  ~State() { XXH3_freeState(value); }
};

Xxh3Digest::Xxh3Digest() : state_(std::make_unique<State>()) {
  if (state_->value == nullptr) throw ResourceError("not enough memory for a digest");
  XXH3_128bits_reset(state_->value);
}

Xxh3Digest::~Xxh3Digest() = default;

void Xxh3Digest::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_->value, bytes.data(), bytes.size());
}

std::string Xxh3Digest::hex() const { return canonical(XXH3_128bits_digest(state_->value)); }

std::string xxh3_hex(std::span<const std::byte> bytes) { return canonical(XXH3_128bits(bytes.data(), bytes.size())); }

namespace {

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }
  void update(std::span<const std::byte> bytes) {
    check(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1);
  }
  std::string hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
    unsigned int length = 0;
    check(EVP_DigestFinal_ex(context_.get(), out.data(), &length) == 1);
    return to_hex(std::span(out).first(length));
  }

 private:
  static void check(bool done) {
    if (!done) throw Error("SHA-256 is not available in this OpenSSL");
  }
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256_hex(std::span<const std::byte> bytes) {
  Sha256 digest;
  digest.update(bytes);
  return digest.hex();
}

std::string sha256_hex_of_file(const std::filesystem::path& path) {
  constexpr size_t kPart = size_t{16} << 20;  // held in memory at a time, however large the file
  const MappedFile file(path);
  Sha256 digest;
  for (size_t begin = 0; begin < file.bytes().size(); begin += kPart) {
    const auto part = file.bytes().subspan(begin, std::min(kPart, file.bytes().size() - begin));
    digest.update(part);
    file.release(part);
  }
  return digest.hex();
}

}  // namespace cinch
