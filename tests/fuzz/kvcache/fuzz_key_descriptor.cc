// Any bytes: DecodeKeyDescriptor refuses them, or they are the one encoding of what it gives.
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "base/log.h"
#include "kvcache/key_descriptor.h"
#include "kvcache/sha256.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const kvtier::ByteSpan bytes = kvtier::AsBytes(std::span(data, size));
  const auto descriptor = kvtier::DecodeKeyDescriptor(bytes);
  if (!descriptor.ok()) {
    KVTIER_CHECK(descriptor.status().code() == absl::StatusCode::kInvalidArgument)
        << descriptor.status();
    return 0;
  }
  KVTIER_CHECK(kvtier::EncodeKeyDescriptor(*descriptor).value() == kvtier::AsStringView(bytes));
  KVTIER_CHECK(kvtier::ComputeKey(*descriptor)->AsStringView() ==
               kvtier::ComputeSha256(bytes).AsStringView());
  return 0;
}
