#include <cstddef>
#include <cstdint>

#include "base/log.h"
#include "compressor/prompt_profile.h"

// Any text is a prompt profile: refused by name, or usable on any context.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto profile = kvtier::PromptProfile::Parse(text);
  if (!profile.ok()) {
    KVTIER_CHECK(absl::IsInvalidArgument(profile.status()) ||
                 absl::IsUnimplemented(profile.status()))
        << profile.status();
    return 0;
  }
  const uint32_t context[20] = {};
  for (uint32_t chunk = 0; chunk < profile->ChunkCount(20); ++chunk) {
    KVTIER_CHECK_LE(profile->RepeatInput(context, chunk).size(), profile->RepeatRowsMax(20));
  }
  return profile->ComputeDigest().IsZero() ? 1 : 0;
}
