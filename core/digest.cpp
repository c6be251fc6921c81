#include "core/digest.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include <array>

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

std::string sha256_hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned int length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), out.data(), &length, EVP_sha256(), nullptr) != 1) {
    throw Error("SHA-256 is not available in this OpenSSL");
  }
  return to_hex(std::span(out).first(length));
}

std::string sha256_hex_of_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  return sha256_hex(file.bytes());
}

}  // namespace cinch
