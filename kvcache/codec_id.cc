#include "kvcache/codec_id.h"

#include <algorithm>
#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"

namespace kvtier {
namespace {

struct NamedCodec {
  CodecId id;
  absl::string_view name;
};
constexpr std::array<NamedCodec, 3> kCodecs = {{
    {CodecId::kRaw, "raw"},
    {CodecId::kInt8, "int8"},
    {CodecId::kInt4, "int4"},
}};

}  // namespace

bool IsKnownCodec(CodecId codec) {
  return std::any_of(kCodecs.begin(), kCodecs.end(),
                     [codec](const NamedCodec& known) { return known.id == codec; });
}

absl::string_view CodecName(CodecId codec) {
  for (const NamedCodec& known : kCodecs) {
    if (known.id == codec) return known.name;
  }
  KVTIER_CHECK(false) << "codec " << static_cast<int>(codec);
  return "";
}

std::string CodecNames() {
  return absl::StrJoin(kCodecs, ", ", [](std::string* out, const NamedCodec& known) {
    absl::StrAppend(out, known.name);
  });
}

absl::StatusOr<CodecId> CodecFromName(absl::string_view name) {
  for (const NamedCodec& known : kCodecs) {
    if (known.name == name) return known.id;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown row codec \"", name, "\"; this build knows: ", CodecNames()));
}

}  // namespace kvtier
