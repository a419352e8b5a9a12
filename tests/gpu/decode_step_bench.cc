#include "tests/gpu/decode_step_bench.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/aligned_bytes.h"
#include "base/half.h"
#include "base/status_macros.h"
#include "compressor/decoder.h"
#include "compressor/resident_cache.h"
#include "kvcache/segment_layout.h"

namespace kvtier {
namespace {

constexpr uint64_t kSeed = 20260101;
constexpr int64_t kQuestionTokens = 8;
constexpr int64_t kStepsPerCall = 8;
// Before the first that counts: one that is launched, one that is captured.
constexpr int64_t kFirstSteps = 2;

// Of something that exists only here.
template <typename Name>
Name Id() {
  std::array<std::byte, Name::kSize> bytes;
  bytes.fill(std::byte{1});
  return Name(bytes);
}

// One band with 30 % of the pairs, shared out to all heads; every second head gives 0.9 or 0.4 of
// its rows to its neighbour.
absl::StatusOr<std::shared_ptr<const Manifest>> MakeManifest(const Model& model, int64_t tokens) {
  auto manifest = std::make_shared<Manifest>();
  manifest->key = Id<Key>();
  manifest->upload_id = Id<UploadId>();
  manifest->prompt_profile_digest = Id<Digest>();
  manifest->model_name = model.name();
  manifest->model_digest = model.digest();
  manifest->recipe = "kvzip/1";
  manifest->geometry = model.config().MakeGeometry(DType::kBf16);
  manifest->context_tokens = static_cast<uint64_t>(tokens);
  const Geometry& geometry = manifest->geometry;
  BandEntry band;
  KVTIER_ASSIGN_OR_RETURN(band.edge, Ratio::FromMillionths(300'000));
  band.threshold = -1;
  const uint64_t pairs = manifest->RankEnd(band.edge);
  band.score_mass = static_cast<double>(pairs) * std::exp(-1.0);
  const uint64_t heads = uint64_t{geometry.layer_count()} * geometry.kv_heads;
  uint64_t first_head = 0;
  for (uint32_t layer = 0; layer < geometry.layer_count(); ++layer) {
    std::vector<uint64_t> rows;
    for (uint32_t head = 0; head < geometry.kv_heads; ++head, ++first_head) {
      rows.push_back(pairs / heads + (first_head < pairs % heads ? 1 : 0));
    }
    for (size_t head = 0; head + 1 < rows.size(); head += 2) {
      const uint64_t room = manifest->context_tokens - rows[head + 1];
      const uint64_t moved = std::min(rows[head] * (head % 4 == 0 ? 9 : 4) / 10, room);
      rows[head] -= moved;
      rows[head + 1] += moved;
    }
    SegmentEntry segment;
    for (const uint64_t count : rows) {
      const auto of_head = static_cast<uint32_t>(count);
      segment.heads.push_back({.rows = of_head,
                               .encoded_bytes = LayOutHeadBlock(geometry, of_head).bytes,
                               .crc32c = {}});
    }
    band.layers.push_back(std::move(segment));
  }
  manifest->bands.push_back(std::move(band));
  KVTIER_RETURN_IF_ERROR(manifest->Validate());
  return std::shared_ptr<const Manifest>(std::move(manifest));
}

// Random finite bf16 numbers wherever a row may lie. Nobody looks at positions and scores.
absl::StatusOr<std::shared_ptr<const ResidentCache>> MakeObject(const Model& model,
                                                                int64_t tokens) {
  KVTIER_ASSIGN_OR_RETURN(const std::shared_ptr<const Manifest> manifest,
                          MakeManifest(model, tokens));
  std::mt19937_64 random(kSeed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<bfloat16> numbers(size_t{1} << 20);
  for (bfloat16& number : numbers) number = bfloat16(uniform(random));
  const size_t numbers_bytes = numbers.size() * sizeof(bfloat16);
  ResidentCacheLoader loader(model.backend());
  KVTIER_RETURN_IF_ERROR(loader.OnManifest(manifest, 1));
  for (uint32_t layer = 0; layer < manifest->geometry.layer_count(); ++layer) {
    const uint64_t bytes = manifest->segment(BandIndex(0), LayerIndex(layer)).encoded_bytes();
    AlignedBytes segment = AlignedBytes::Allocate(bytes);
    for (uint64_t at = 0; at < bytes; at += numbers_bytes) {
      std::memcpy(segment.data() + at, numbers.data(), std::min(numbers_bytes, bytes - at));
    }
    KVTIER_RETURN_IF_ERROR(
        loader.OnSegment(BandIndex(0), LayerIndex(layer), SegmentRef::Own(std::move(segment))));
  }
  return std::move(loader).Finish();
}

}  // namespace

absl::StatusOr<Figures> MeasureDecodeStep(
    const Model& model, int64_t tokens,
    const std::function<absl::StatusOr<double>(const std::function<absl::Status()>& work)>& time,
    int calls_max, double copy_rate) {
  KVTIER_ASSIGN_OR_RETURN(const std::shared_ptr<const ResidentCache> object,
                          MakeObject(model, tokens));
  const int64_t tail = kQuestionTokens + kFirstSteps + calls_max * kStepsPerCall;
  const auto measure = [&](StepMode mode) -> absl::StatusOr<double> {
    KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Decoder> decoder,
                            Decoder::Create(model, object, tail, mode));
    const std::vector<uint32_t> question(kQuestionTokens, 1);
    KVTIER_RETURN_IF_ERROR(decoder->Append(question).status());
    const auto steps = [&](int64_t count) -> absl::Status {
      for (int64_t i = 0; i < count; ++i) {
        const auto id = static_cast<uint32_t>(decoder->tail_length() % model.config().vocabulary);
        KVTIER_RETURN_IF_ERROR(decoder->Append({&id, 1}).status());
      }
      return absl::OkStatus();
    };
    KVTIER_RETURN_IF_ERROR(steps(kFirstSteps));
    KVTIER_ASSIGN_OR_RETURN(const double seconds, time([&] { return steps(kStepsPerCall); }));
    // A row that says "replayed" and was not would mislead.
    const StepCounts counts = decoder->step_counts();
    if (mode == StepMode::kReplayed && counts.replayed == 0) {
      return absl::InternalError("no step was replayed");
    }
    return seconds / kStepsPerCall;
  };
  KVTIER_ASSIGN_OR_RETURN(const double replayed, measure(StepMode::kReplayed));
  KVTIER_ASSIGN_OR_RETURN(const double launched, measure(StepMode::kLaunched));
  KVTIER_ASSIGN_OR_RETURN(const double plain, measure(StepMode::kPlain));
  const Manifest& manifest = object->manifest();
  // Of the embedding a step reads one row, unless it is the LM head as well.
  const TensorView table = model.embedding();
  const uint64_t embedding = model.config().tied_embeddings
                                 ? 0
                                 : uint64_t(table.rows) * table.cols * DTypeBytes(table.dtype);
  const uint64_t kept =
      manifest.RankEnd(manifest.bands[0].edge) * 2 * manifest.geometry.row_bytes();
  const auto bytes = static_cast<double>(kept + model.weight_bytes() - embedding);
  return Figures{{"replayed_seconds", replayed},
                 {"launched_seconds", launched},
                 {"plain_seconds", plain},
                 {"bytes_per_second", bytes / replayed},
                 {"copy_share", bytes / replayed / copy_rate}};
}

}  // namespace kvtier
