// Fills a store's disk tier, gives half of every object's bands up, deletes objects, and repeats:
// does the space come back, and what does it cost? The figures of docs/adr/0004-rocksdb-layout.md.
//
//   kvtier-store-churn FOLDER [objects] [turnovers]
//
// FOLDER must not exist; it is left behind. Objects have 4 bands of about 16 MiB.
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/log.h"
#include "kvcache/compressed_object.h"
#include "kvcache/segment.h"
#include "store/rocksdb_tier.h"

namespace kvtier {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

uint64_t FolderBytes(const std::string& folder) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

// Bytes that this process has had written to the disk.
uint64_t WrittenBytes() {
  std::ifstream io("/proc/self/io");
  std::string name;
  uint64_t value = 0;
  while (io >> name >> value) {
    if (name == "write_bytes:") return value;
  }
  return 0;
}

// 8 layers x 8 heads x 2,048 tokens, bf16: 64 MiB of keys and values and a little for positions.
// Band b holds every fourth position from b on.
CompressedObject MakeObject() {
  constexpr uint32_t kBands = 4;
  constexpr uint32_t kTokens = 2048;
  auto manifest = std::make_shared<Manifest>();
  manifest->model_name = "churn";
  manifest->recipe = "none";
  manifest->model_digest = Digest({std::byte{1}});
  manifest->prompt_profile_digest = Digest({std::byte{1}});
  manifest->geometry = Geometry{.kv_heads = 8,
                                .head_dim = 128,
                                .dtype = DType::kBf16,
                                .layers = std::vector<LayerKind>(8, LayerKind::kGlobal)};
  manifest->context_tokens = kTokens;
  CompressedObject object;
  std::mt19937_64 random(1);
  const std::vector<uint32_t> rows(manifest->geometry.kv_heads, kTokens / kBands);
  for (uint32_t band = 0; band < kBands; ++band) {
    BandEntry entry;
    entry.edge = *Ratio::FromMillionths((band + 1) * Ratio::kOne / kBands);
    for (uint32_t layer = 0; layer < manifest->geometry.layer_count(); ++layer) {
      absl::StatusOr<SegmentBuilder> builder = SegmentBuilder::Create(manifest->geometry, rows);
      KVTIER_CHECK_OK(builder);
      for (uint32_t head = 0; head < rows.size(); ++head) {
        const HeadRowsMut out = builder->head(head);
        for (uint32_t row = 0; row < rows[head]; ++row) out.positions[row] = row * kBands + band;
        for (uint64_t i = 0; i < rows[head] * manifest->geometry.row_bytes(); i += 8) {
          const uint64_t bits = random();
          std::memcpy(out.keys + i, &bits, sizeof(bits));
          std::memcpy(out.values + i, &bits, sizeof(bits));
        }
      }
      SegmentBuilder::Sealed sealed = std::move(*builder).Seal();
      entry.layers.push_back(std::move(sealed.entry));
      object.segments.push_back(SegmentRef::Own(std::move(sealed.bytes)));
    }
    manifest->bands.push_back(std::move(entry));
  }
  object.manifest = std::move(manifest);
  return object;
}

// The same content under another key and upload: making content is slower than storing it.
std::shared_ptr<const Manifest> Renamed(const CompressedObject& object, uint64_t seed) {
  auto manifest = std::make_shared<Manifest>(*object.manifest);
  std::array<std::byte, Key::kSize> key{};
  std::memcpy(key.data(), &seed, sizeof(seed));
  manifest->key = Key(key);
  manifest->upload_id = MakeUploadId();
  return manifest;
}

class Churn {
 public:
  Churn(std::string folder, int objects, int turnovers)
      : folder_(std::move(folder)), objects_(objects), turnovers_(turnovers) {}

  void Run() {
    Open();
    std::printf("%d objects of %.1f MiB in 4 bands, %d turnovers\n", objects_,
                static_cast<double>(object_.manifest->total_bytes()) / (1 << 20), turnovers_);
    std::printf("%-10s %10s %10s %12s %10s %10s\n", "step", "seconds", "GB/s", "live MB",
                "on disk MB", "written/live");
    for (int turnover = 0; turnover < turnovers_; ++turnover) {
      // Each turnover brings as many objects as the one before left degraded, and those go.
      std::vector<std::shared_ptr<const Manifest>> old;
      old.swap(stored_);
      Timed("fill", [&] {
        for (int i = 0; i < objects_; ++i) Put();
      });
      Timed("read", [&] {
        for (const auto& manifest : stored_) Read(*manifest);
      });
      Timed("degrade", [&] {
        for (const auto& manifest : stored_)
          KVTIER_CHECK_OK(tier_->DropBands(manifest->upload_id, 2));
      });
      Timed("delete", [&] {
        for (const auto& manifest : old) {
          KVTIER_CHECK_OK(tier_->Unseal(TenantId(), manifest->key, manifest->upload_id));
        }
      });
    }
    Timed("reopen", [&] { Open(); });
  }

 private:
  void Open() {
    tier_.reset();
    absl::StatusOr<std::unique_ptr<DurableTier>> tier = OpenRocksDbTier({.folder = folder_});
    KVTIER_CHECK_OK(tier);
    tier_ = *std::move(tier);
    KVTIER_CHECK_OK(tier_->Recover());
  }

  void Put() {
    const auto manifest = Renamed(object_, ++seed_);
    const uint32_t layers = manifest->geometry.layer_count();
    for (uint32_t band = 0; band < manifest->bands.size(); ++band) {
      KVTIER_CHECK_OK(tier_->PutBand(*manifest, BandIndex(band),
                                     std::span(object_.segments).subspan(band * layers, layers)));
    }
    KVTIER_CHECK_OK(tier_->Seal(TenantId(), *manifest, absl::Now()));
    stored_.push_back(manifest);
    moved_bytes_ += manifest->total_bytes();
    put_bytes_ += manifest->total_bytes();
  }

  void Read(const Manifest& manifest) {
    for (uint32_t band = 0; band < manifest.bands.size(); ++band) {
      for (uint32_t layer = 0; layer < manifest.geometry.layer_count(); ++layer) {
        const auto segment = tier_->Get(manifest, BandIndex(band), LayerIndex(layer));
        KVTIER_CHECK_OK(segment);
        moved_bytes_ += segment->bytes().size();
      }
    }
  }

  template <typename Step>
  void Timed(const char* name, Step step) {
    moved_bytes_ = 0;
    const double begin = Seconds();
    step();
    const double seconds = Seconds() - begin;
    std::printf("%-10s %10.3f %10.2f %12.1f %10.1f %10.3f\n", name, seconds,
                static_cast<double>(moved_bytes_) / seconds / 1e9,
                static_cast<double>(tier_->Usage().bytes) / 1e6,
                static_cast<double>(FolderBytes(folder_)) / 1e6,
                static_cast<double>(WrittenBytes()) / static_cast<double>(put_bytes_));
    std::fflush(stdout);
  }

  const std::string folder_;
  const int objects_;
  const int turnovers_;
  const CompressedObject object_ = MakeObject();
  std::unique_ptr<DurableTier> tier_;
  std::vector<std::shared_ptr<const Manifest>> stored_;
  uint64_t seed_ = 0;
  uint64_t moved_bytes_ = 0;
  uint64_t put_bytes_ = 0;
};

}  // namespace
}  // namespace kvtier

int main(int argc, char** argv) {
  int objects = 16;
  int turnovers = 3;
  if (argc < 2 || argc > 4 || (argc > 2 && !absl::SimpleAtoi(argv[2], &objects)) ||
      (argc > 3 && !absl::SimpleAtoi(argv[3], &turnovers)) || std::filesystem::exists(argv[1])) {
    std::fprintf(stderr, "usage: kvtier-store-churn FOLDER [objects] [turnovers]; FOLDER is new\n");
    return 2;
  }
  kvtier::Churn(argv[1], objects, turnovers).Run();
  return 0;
}
