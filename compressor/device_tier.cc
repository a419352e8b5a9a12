#include "compressor/device_tier.h"

#include <atomic>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kvtier {

// Bytes charged: what is reserved for an insertion or held by an object. Objects credit it when
// their memory is gone, which may be after the tier has forgotten them.
struct DeviceTier::Account {
  std::atomic<uint64_t> bytes{0};
};

class DeviceTier::Object final : public DeviceObject {
 public:
  // Takes over a charge of `bytes`.
  Object(std::shared_ptr<Account> account, uint64_t bytes, std::shared_ptr<const Manifest> manifest,
         uint32_t bands)
      : account_(std::move(account)),
        bytes_(bytes),
        manifest_(std::move(manifest)),
        bands_(bands),
        segments_(size_t{bands} * manifest_->geometry.layer_count()) {}
  ~Object() override {
    segments_.clear();  // The memory first, then its charge.
    account_->bytes -= bytes_;
  }

  const std::shared_ptr<const Manifest>& manifest() const override { return manifest_; }
  uint32_t resident_bands() const override { return bands_; }
  TensorView segment(BandIndex band, LayerIndex layer) const override {
    return segments_[IndexOf(band, layer)];
  }

  absl::Status Fill(const CompressedObject& object, Backend& backend) {
    for (uint32_t band = 0; band < bands_; ++band) {
      for (uint32_t layer = 0; layer < manifest_->geometry.layer_count(); ++layer) {
        const SegmentRef& from = object.segment(BandIndex(band), LayerIndex(layer));
        if (from.bytes().empty()) continue;
        Tensor& to = segments_[IndexOf(BandIndex(band), LayerIndex(layer))];
        // Segments are multiples of kSegmentAlignment.
        const int64_t words = static_cast<int64_t>(from.bytes().size() / sizeof(float));
        KVTIER_ASSIGN_OR_RETURN(to, backend.Allocate(DType::kF32, 1, words));
        KVTIER_RETURN_IF_ERROR(backend.Upload(from.bytes(), to));
      }
    }
    return backend.Synchronize();
  }

 private:
  size_t IndexOf(BandIndex band, LayerIndex layer) const {
    return size_t{band.value()} * manifest_->geometry.layer_count() + layer.value();
  }

  const std::shared_ptr<Account> account_;
  const uint64_t bytes_;
  const std::shared_ptr<const Manifest> manifest_;
  const uint32_t bands_;
  std::vector<Tensor> segments_;  // [bands][layers]
};

DeviceTier::DeviceTier(const Options& options, Backend& backend)
    : options_(options), backend_(backend), account_(std::make_shared<Account>()) {}

DeviceTier::~DeviceTier() = default;

std::shared_ptr<const DeviceTier::Object> DeviceTier::TakeLocked(const Name& name) {
  const auto it = entries_.find(name);
  if (it == entries_.end()) return nullptr;
  std::shared_ptr<const Object> object = std::move(it->second.object);
  recency_.erase(it->second.recency);
  entries_.erase(it);
  return object;
}

std::shared_ptr<const DeviceTier::Object> DeviceTier::TakeVictimLocked() {
  for (auto name = recency_.rbegin(); name != recency_.rend(); ++name) {
    // Pins are made under the lock, so one reference is ours and nobody can add another.
    if (entries_.at(*name).object.use_count() == 1) return TakeLocked(Name(*name));
  }
  return nullptr;
}

uint32_t DeviceTier::Reserve(const Manifest& manifest) {
  while (true) {
    std::shared_ptr<const Object> victim;  // Its memory is freed outside the lock.
    MutexLock lock(&mutex_);
    const uint64_t used = account_->bytes.load();
    const uint64_t room = options_.bytes_max > used ? options_.bytes_max - used : 0;
    uint32_t wanted = static_cast<uint32_t>(manifest.bands.size());
    while (wanted > 0 && manifest.PrefixBytes(wanted) > options_.bytes_max) --wanted;
    if (wanted == 0) return 0;
    if (manifest.PrefixBytes(wanted) > room) {
      victim = TakeVictimLocked();
      if (victim != nullptr) {
        ++counts_.evicted;
        continue;
      }
      while (wanted > 0 && manifest.PrefixBytes(wanted) > room) --wanted;
    }
    if (wanted > 0) account_->bytes += manifest.PrefixBytes(wanted);
    return wanted;
  }
}

absl::StatusOr<uint32_t> DeviceTier::Insert(const TenantId& tenant,
                                            const CompressedObject& object) {
  const Name name(tenant, object.manifest->key);
  Remove(tenant, object.manifest->key);
  const uint32_t bands = Reserve(*object.manifest);
  if (bands == 0) {
    MutexLock lock(&mutex_);
    ++counts_.refused;
    return absl::ResourceExhaustedError(absl::StrCat(
        "band 0 has ", object.manifest->PrefixBytes(1), " bytes; ", account_->bytes.load(), " of ",
        options_.bytes_max, " bytes of device memory for recent objects are in use"));
  }
  auto made = std::make_shared<Object>(account_, object.manifest->PrefixBytes(bands),
                                       object.manifest, bands);
  if (absl::Status status = made->Fill(object, backend_); !status.ok()) {
    MutexLock lock(&mutex_);
    ++counts_.refused;
    return status;
  }
  std::shared_ptr<const Object>
      other;  // Inserted meanwhile by somebody else; freed after the lock.
  MutexLock lock(&mutex_);
  other = TakeLocked(name);
  recency_.push_front(name);
  entries_[name] = Entry{.object = std::move(made), .recency = recency_.begin()};
  ++counts_.inserted;
  if (bands < object.manifest->bands.size()) ++counts_.shortened;
  return bands;
}

void DeviceTier::Remove(const TenantId& tenant, const Key& key) {
  std::shared_ptr<const Object> gone;  // Freed after the lock.
  MutexLock lock(&mutex_);
  gone = TakeLocked(Name(tenant, key));
}

absl::StatusOr<std::shared_ptr<const DeviceObject>> DeviceTier::Pin(
    const TenantId& tenant, const Key& key, const std::optional<UploadId>& upload) {
  MutexLock lock(&mutex_);
  const auto it = entries_.find(Name(tenant, key));
  if (it == entries_.end()) {
    ++counts_.misses;
    return absl::NotFoundError("");
  }
  const UploadId& current = it->second.object->manifest()->upload_id;
  if (upload.has_value() && *upload != current) {
    ++counts_.misses;
    return absl::AbortedError(absl::StrCat(
        "upload ", current.ToHex(), " is in device memory, not the asked ", upload->ToHex()));
  }
  ++counts_.hits;
  recency_.splice(recency_.begin(), recency_, it->second.recency);
  return it->second.object;
}

DeviceTierUsage DeviceTier::usage() const {
  MutexLock lock(&mutex_);
  DeviceTierUsage usage = counts_;
  usage.objects = entries_.size();
  usage.bytes = account_->bytes.load();
  return usage;
}

}  // namespace kvtier
