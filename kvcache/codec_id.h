// The names of the row codecs: how the keys and values of a segment are stored. What each one does
// to a row: kvcache/row_codec.h; where its bytes lie: kvcache/segment_layout.h.
#ifndef KVTIER_KVCACHE_CODEC_ID_H_
#define KVTIER_KVCACHE_CODEC_ID_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier {

// Values are stored on disk; never renumber.
enum class CodecId : uint8_t {
  kRaw = 1,   // Elements of the geometry's dtype, as the model made them.
  kInt8 = 2,  // One signed byte per element, one fp16 scale per row. Lossy.
  kInt4 = 3,  // 16 levels per element, fp16 scale and minimum per row. Lossy.
};

// True for the three above: a byte read from a manifest may be anything.
bool IsKnownCodec(CodecId codec);
// "raw", "int8", "int4"; REQUIRES: a known codec.
absl::string_view CodecName(CodecId codec);
// "raw, int8, int4", for messages and help.
std::string CodecNames();
// INVALID_ARGUMENT naming what is known.
absl::StatusOr<CodecId> CodecFromName(absl::string_view name);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_CODEC_ID_H_
