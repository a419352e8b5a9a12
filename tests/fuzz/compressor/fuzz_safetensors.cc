#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "base/log.h"
#include "compressor/safetensors.h"

// Any bytes are a file: accepted with every tensor inside it, or refused as malformed.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const kvtier::ByteSpan file(reinterpret_cast<const std::byte*>(data), size);
  const auto entries = kvtier::ParseSafetensors(file, "input");
  if (!entries.ok()) {
    KVTIER_CHECK(absl::IsInvalidArgument(entries.status())) << entries.status();
    return 0;
  }
  unsigned sum = 0;
  for (const auto& [name, entry] : *entries) {
    for (std::byte byte : entry.bytes) sum += std::to_integer<unsigned>(byte);
  }
  return sum == ~0u ? 1 : 0;  // Keeps the reads.
}
