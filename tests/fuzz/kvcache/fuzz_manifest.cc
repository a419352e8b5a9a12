// Any bytes: DecodeManifest refuses them, or gives a valid manifest that encodes to the same bytes.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "kvcache/manifest.h"

namespace kvtier {
namespace {

void Decode(ByteSpan bytes) {
  const absl::StatusOr<Manifest> manifest = DecodeManifest(bytes);
  if (!manifest.ok()) {
    KVTIER_CHECK(manifest.status().code() == absl::StatusCode::kDataLoss ||
                 manifest.status().code() == absl::StatusCode::kFailedPrecondition ||
                 manifest.status().code() == absl::StatusCode::kInvalidArgument)
        << manifest.status();
    return;
  }
  KVTIER_CHECK_OK(manifest->Validate());
  KVTIER_CHECK(AsStringView(bytes) == EncodeManifest(*manifest));
  KVTIER_CHECK_LE(manifest->PrefixBytes(1), manifest->total_bytes());
}

// Length and checksum made right, so that mutations reach what lies behind them.
std::string Reseal(ByteSpan bytes) {
  std::string sealed = ToString(bytes);
  const MutableByteSpan all = AsMutableBytes(sealed);
  StoreLittleEndian<uint64_t>(all.size(), all.data() + 12);
  const Crc32c crc = ComputeCrc32c(all.first(all.size() - 4));
  StoreLittleEndian(crc.value(), all.data() + all.size() - 4);
  return sealed;
}

}  // namespace
}  // namespace kvtier

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const kvtier::ByteSpan bytes = kvtier::AsBytes(std::span(data, size));
  kvtier::Decode(bytes);
  if (size >= 24) {
    const std::string sealed = kvtier::Reseal(bytes);
    kvtier::Decode(kvtier::AsBytes(sealed));
  }
  return 0;
}
