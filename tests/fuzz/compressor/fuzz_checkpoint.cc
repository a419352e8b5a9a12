#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "base/bytes.h"
#include "base/log.h"
#include "compressor/checkpoint.h"
#include "compressor/model_config.h"
#include "compressor/safetensors.h"

namespace {

using absl::string_view;

void CheckCode(const absl::Status& status) {
  KVTIER_CHECK(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status)) << status;
  // Names come from the input and must not make a message, which is logged, as large as that.
  KVTIER_CHECK_LE(status.message().size(), 2000u);
}

// What nobody behind the parser checks again.
void CheckConfig(const kvtier::ModelConfig& config) {
  KVTIER_CHECK_OK(config.MakeGeometry(kvtier::DType::kBf16).Validate());
  KVTIER_CHECK_EQ(static_cast<int64_t>(config.layer_kinds.size()), config.layers);
  KVTIER_CHECK_EQ(config.q_heads % config.kv_heads, 0);
  KVTIER_CHECK(std::isfinite(config.softmax_scale()) && config.softmax_scale() > 0);
  KVTIER_CHECK(config.rms_epsilon > 0);
  KVTIER_CHECK(!config.RopeFingerprint().empty());
  bool sliding = false;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    sliding |= config.layer_window(layer) > 0;
  }
  KVTIER_CHECK_EQ(sliding, config.window > 0);
  for (kvtier::LayerKind kind : {kvtier::LayerKind::kGlobal, kvtier::LayerKind::kSliding}) {
    const kvtier::RopeTable table = config.MakeRopeTable(kind);
    KVTIER_CHECK_EQ(static_cast<int64_t>(table.inverse_frequencies.size()), config.head_dim / 2);
    for (float frequency : table.inverse_frequencies) KVTIER_CHECK(std::isfinite(frequency));
  }
}

// Everything up to the next tag byte, which goes too; `rest` keeps what is behind.
string_view NextPart(string_view& rest) {
  constexpr char kTag = '\xff';  // In no UTF-8 text.
  const size_t end = rest.find(kTag);
  const string_view part = rest.substr(0, end);
  rest = end == string_view::npos ? string_view() : rest.substr(end + 1);
  return part;
}

}  // namespace

// A checkpoint folder in one input: config.json, tag byte, index, tag byte, a safetensors file (to
// the end, as it may hold any byte). Each part is refused by name or gives what the loader can rely
// on: one configuration, tensors inside their file, file names inside the folder.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  string_view rest(reinterpret_cast<const char*>(data), size);
  const string_view config_text = NextPart(rest);
  const string_view index_text = NextPart(rest);

  const auto config = kvtier::ModelConfig::Parse(config_text);
  if (!config.ok()) {
    CheckCode(config.status());
  } else {
    CheckConfig(*config);
  }

  const auto index = kvtier::CheckpointIndex::Parse(index_text);
  if (!index.ok()) {
    CheckCode(index.status());
  } else {
    KVTIER_CHECK(!index->files.empty());
    for (const auto& [tensor, file] : index->files) {
      KVTIER_CHECK(file.find('/') == std::string::npos && file.size() > 11) << file;
    }
  }

  const kvtier::ByteSpan file(reinterpret_cast<const std::byte*>(rest.data()), rest.size());
  std::map<std::string, std::string> metadata;
  const auto entries = kvtier::ParseSafetensors(file, "input", &metadata);
  if (!entries.ok()) {
    CheckCode(entries.status());
    return 0;
  }
  for (const auto& [name, entry] : *entries) {
    KVTIER_CHECK_EQ(kvtier::SafetensorsBytes(entry.dtype, entry.shape).value(), entry.bytes.size());
    for (kvtier::DType dtype : {kvtier::DType::kF32, kvtier::DType::kF16, kvtier::DType::kBf16}) {
      const int64_t at = kvtier::FindNotFinite(entry.bytes, dtype);
      KVTIER_CHECK(at >= -1 && at < static_cast<int64_t>(entry.bytes.size())) << at;
    }
  }
  return 0;
}
