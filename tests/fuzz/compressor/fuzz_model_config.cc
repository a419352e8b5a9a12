#include <cstddef>
#include <cstdint>

#include "base/log.h"
#include "compressor/model_config.h"

// Any text is a config.json: refused by name, or numbers that everything behind it can work with.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = kvtier::ModelConfig::Parse(text);
  if (!config.ok()) {
    KVTIER_CHECK(absl::IsInvalidArgument(config.status()) || absl::IsUnimplemented(config.status()))
        << config.status();
    return 0;
  }
  KVTIER_CHECK_OK(config->MakeGeometry(kvtier::DType::kBf16).Validate());
  KVTIER_CHECK_EQ(config->q_heads % config->kv_heads, 0);
  KVTIER_CHECK_EQ(static_cast<int64_t>(
                      config->MakeRopeTable(kvtier::LayerKind::kGlobal).inverse_frequencies.size()),
                  config->head_dim / 2);
  return config->RopeFingerprint().empty() ? 1 : 0;
}
