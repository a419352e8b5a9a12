// SHA-256 over a library's implementation. The one place that sees OpenSSL.
#ifndef KVTIER_KVCACHE_SHA256_H_
#define KVTIER_KVCACHE_SHA256_H_

#include <array>
#include <cstddef>
#include <memory>
#include <span>

#include "absl/strings/string_view.h"
#include "kvcache/ids.h"

namespace kvtier {

// Incremental hash. Not thread-safe. Finish may be called once.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(std::span<const std::byte> bytes);
  void Update(absl::string_view text);
  std::array<std::byte, 32> Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Digest ComputeSha256(std::span<const std::byte> bytes);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_SHA256_H_
