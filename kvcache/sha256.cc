#include "kvcache/sha256.h"

#include <openssl/evp.h>

#include "base/bytes.h"
#include "base/log.h"

namespace kvtier {

// OpenSSL's digest calls fail only when memory runs out or the library itself is broken; neither
// comes from our input, hence CHECK.
struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  KVTIER_CHECK(state_->context != nullptr);
  KVTIER_CHECK(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(std::span<const std::byte> bytes) {
  KVTIER_CHECK(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1);
}

void Sha256::Update(absl::string_view text) { Update(AsBytes(text)); }

std::array<std::byte, 32> Sha256::Finish() {
  std::array<std::byte, 32> digest;
  unsigned int length = 0;
  KVTIER_CHECK(EVP_DigestFinal_ex(state_->context, reinterpret_cast<unsigned char*>(digest.data()),
                                  &length) == 1);
  KVTIER_CHECK(length == digest.size());
  return digest;
}

Digest ComputeSha256(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return Digest(hash.Finish());
}

}  // namespace kvtier
