// kvtierctl ls, fetch, rm, verify, stats: what a store holds.

#include <sys/stat.h>

#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kvcache/segment.h"
#include "services/client.h"
#include "services/ctl/commands.h"
#include "services/ctl/flags.h"
#include "services/ctl/input.h"
#include "services/ctl/output.h"
#include "store/rocksdb_tier.h"
#include "store/tiered_store.h"

ABSL_DECLARE_FLAG(double, min_ratio);
ABSL_DECLARE_FLAG(double, ratio);
ABSL_DECLARE_FLAG(std::string, out);
ABSL_DECLARE_FLAG(std::string, model);
ABSL_DECLARE_FLAG(bool, dry_run);
ABSL_FLAG(double, keep_ratio, 0,
          "keep the bands up to this ratio and give up the rest; 0: remove the object");
ABSL_FLAG(bool, all, false, "every object");
ABSL_FLAG(std::string, data_dir, "",
          "check every object of a stopped store's folder, or of a folder that fetch wrote");

namespace kvtier::ctl {
namespace {

std::string SegmentFileName(BandIndex band, LayerIndex layer) {
  return absl::StrFormat("segment-%02d-%04d", band.value(), layer.value());
}

// Writes what arrives to a folder: `manifest`, and a file per segment.
class FolderSink final : public SegmentSink {
 public:
  explicit FolderSink(std::string folder) : folder_(std::move(folder)) {}
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    manifest_ = std::move(manifest);
    band_count_ = band_count;
    return WriteFile(absl::StrCat(folder_, "/manifest"), EncodeManifest(*manifest_));
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef segment) override {
    bytes_ += segment.bytes().size();
    bar_.Update("fetching", bytes_, manifest_->PrefixBytes(band_count_));
    return WriteFile(absl::StrCat(folder_, "/", SegmentFileName(band, layer)),
                     AsStringView(segment.bytes()));
  }
  uint64_t bytes() const { return bytes_; }
  uint32_t band_count() const { return band_count_; }
  const Manifest& manifest() const { return *manifest_; }

 private:
  const std::string folder_;
  std::shared_ptr<const Manifest> manifest_;
  uint32_t band_count_ = 0;
  uint64_t bytes_ = 0;
  ProgressBar bar_;
};

struct Checked {
  uint64_t objects = 0;
  uint64_t bytes = 0;
};

absl::Status PrintChecked(const Checked& checked) {
  if (absl::GetFlag(FLAGS_json)) {
    std::puts(Dump({{"objects", checked.objects}, {"bytes", checked.bytes}}).c_str());
  } else {
    absl::PrintF("intact: %d objects, %s\n", checked.objects, FormatBytes(checked.bytes));
  }
  return absl::OkStatus();
}

// A folder that `fetch` wrote. Bands are complete up to the first missing file.
absl::StatusOr<Checked> VerifyFetched(const std::string& folder) {
  KVTIER_ASSIGN_OR_RETURN(const std::string bytes,
                          ReadFile(absl::StrCat(folder, "/manifest"), limits::kManifestBytesMax));
  KVTIER_ASSIGN_OR_RETURN(const Manifest manifest,
                          DecodeManifest(AsBytes(absl::string_view(bytes))));
  Checked checked{.objects = 1};
  for (uint32_t b = 0; b < manifest.bands.size(); ++b) {
    for (uint32_t l = 0; l < manifest.geometry.layer_count(); ++l) {
      const BandIndex band(b);
      const LayerIndex layer(l);
      const std::string path = absl::StrCat(folder, "/", SegmentFileName(band, layer));
      if (l == 0 && b > 0 && !std::filesystem::exists(path)) return checked;
      KVTIER_ASSIGN_OR_RETURN(const std::string segment, ReadFile(path, limits::kSegmentBytesMax));
      AlignedBytes aligned = AlignedBytes::Copy(AsBytes(absl::string_view(segment)));
      KVTIER_RETURN_IF_ERROR(VerifySegmentContent(manifest, band, layer, aligned.span()));
      checked.bytes += segment.size();
    }
  }
  return checked;
}

// The folder of a store that is not running; left as it is, whatever is in it.
absl::StatusOr<Checked> VerifyStoreFolder(const std::string& folder) {
  KVTIER_ASSIGN_OR_RETURN(
      std::unique_ptr<DurableTier> disk,
      OpenRocksDbTier({.folder = folder, .must_exist = true, .read_only = true}));
  KVTIER_ASSIGN_OR_RETURN(std::vector<SealedObject> objects, disk->Recover());
  Checked checked;
  absl::Status worst;
  ProgressBar bar;
  for (const SealedObject& object : objects) {
    const Manifest& manifest = *object.manifest;
    for (uint32_t b = 0; b < object.resident_bands; ++b) {
      for (uint32_t l = 0; l < manifest.geometry.layer_count(); ++l) {
        absl::StatusOr<SegmentRef> segment = disk->Get(manifest, BandIndex(b), LayerIndex(l));
        const absl::Status status =
            segment.ok()
                ? VerifySegmentContent(manifest, BandIndex(b), LayerIndex(l), segment->bytes())
                : segment.status();
        if (!status.ok()) {
          std::fprintf(stderr, "kvtierctl: key %s band %u layer %u: %s\n",
                       manifest.key.ToHex().c_str(), b, l, status.ToString().c_str());
          worst.Update(status);
          continue;
        }
        checked.bytes += segment->bytes().size();
      }
    }
    bar.Update("verifying", ++checked.objects, objects.size());
  }
  const DurableCounters found = disk->counters();
  if (found.records_lost > 0 || found.bands_lost > 0) {
    worst.Update(absl::DataLossError(absl::StrCat(folder, ": ", found.records_lost,
                                                  " records cannot be used, files of ",
                                                  found.bands_lost, " bands are missing")));
  }
  KVTIER_RETURN_IF_ERROR(worst);
  return checked;
}

}  // namespace

absl::Status List(const Arguments& arguments) {
  KVTIER_RETURN_IF_ERROR(NoArguments(arguments));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  nlohmann::json json = nlohmann::json::array();
  std::vector<std::vector<std::string>> rows = {
      {"key", "model", "tokens", "ratio", "bytes", "dense", "host bands", "disk bands"}};
  std::string after;
  do {
    KVTIER_ASSIGN_OR_RETURN(const v1::ListResponse page, store->List(after, 0, Deadline()));
    for (const v1::ObjectSummary& object : page.objects()) {
      json.push_back(ToJson(object));
      uint64_t bytes = 0;
      uint32_t edge = 0;
      for (uint32_t b = 0; b < object.resident_bands() && b < uint32_t(object.bands_size()); ++b) {
        bytes += object.bands(static_cast<int>(b)).bytes();
        edge = object.bands(static_cast<int>(b)).edge_millionths();
      }
      rows.push_back({ToHex(object.name().key()), object.model(),
                      absl::StrCat(object.context_tokens()), FormatRatio(edge), FormatBytes(bytes),
                      FormatBytes(object.dense_bytes()), absl::StrCat(object.host_bands()),
                      absl::StrCat(object.disk_bands())});
    }
    after = page.next_after_key();
  } while (!after.empty());
  if (absl::GetFlag(FLAGS_json)) {
    std::puts(Dump(json).c_str());
  } else {
    absl::PrintF("%s", FormatTable(rows));
  }
  return absl::OkStatus();
}

absl::Status Fetch(const Arguments& arguments) {
  const std::string out = absl::GetFlag(FLAGS_out);
  if (out.empty()) return absl::InvalidArgumentError("--out names the folder to write");
  FetchRequest request;
  KVTIER_ASSIGN_OR_RETURN(request.tenant, OwnTenant());
  KVTIER_ASSIGN_OR_RETURN(request.key, RequiredKey(arguments));
  KVTIER_ASSIGN_OR_RETURN(request.ratio, Ratio::FromDouble(absl::GetFlag(FLAGS_ratio)));
  request.min_ratio = request.ratio;
  if (absl::GetFlag(FLAGS_min_ratio) != 0) {
    KVTIER_ASSIGN_OR_RETURN(request.min_ratio, Ratio::FromDouble(absl::GetFlag(FLAGS_min_ratio)));
  }
  std::error_code error;
  std::filesystem::create_directories(out, error);
  if (error)
    return absl::UnavailableError(absl::StrCat("cannot create ", out, ": ", error.message()));
  const std::unique_ptr<Transport> transport =
      MakeGrpcTransport(MakeChannel(absl::GetFlag(FLAGS_store)));
  const absl::Time begin = Clock::Real().Now();
  FolderSink sink(out);
  KVTIER_RETURN_IF_ERROR(transport->Fetch(request, Deadline(), sink));
  const double seconds = absl::ToDoubleSeconds(Clock::Real().Now() - begin);
  const Ratio ratio = sink.manifest().bands[sink.band_count() - 1].edge;
  if (absl::GetFlag(FLAGS_json)) {
    std::puts(Dump({{"ratio", ratio.ToDouble()},
                    {"bands", sink.band_count()},
                    {"bytes", sink.bytes()},
                    {"seconds", seconds}})
                  .c_str());
  } else {
    absl::PrintF("ratio %s: %s in %d bands, written to %s in %.1f ms\n", ratio.ToString(),
                 FormatBytes(sink.bytes()), sink.band_count(), out, 1e3 * seconds);
  }
  return absl::OkStatus();
}

namespace {

// The digest itself, or that of the one stored model of this name.
absl::StatusOr<Digest> ModelDigest(StoreClient& store, const std::string& model) {
  if (absl::StatusOr<Digest> digest = Digest::FromHex(model); digest.ok()) return digest;
  std::optional<Digest> found;
  std::string after;
  do {
    KVTIER_ASSIGN_OR_RETURN(const v1::ListResponse page, store.List(after, 0, Deadline()));
    for (const v1::ObjectSummary& object : page.objects()) {
      if (object.model() != model) continue;
      KVTIER_ASSIGN_OR_RETURN(const Key key,
                              Key::FromBytes(absl::string_view(object.name().key())));
      const absl::StatusOr<v1::GetObjectResponse> response = store.GetObject(key, Deadline());
      if (absl::IsNotFound(response.status())) continue;  // Gone since.
      KVTIER_RETURN_IF_ERROR(response.status());
      KVTIER_ASSIGN_OR_RETURN(const Manifest manifest,
                              DecodeManifest(AsBytes(absl::string_view(response->manifest()))));
      if (found.has_value() && *found != manifest.model_digest) {
        return absl::InvalidArgumentError(
            absl::StrCat("several models are called ", model, ": ", found->ToHex(), ", ",
                         manifest.model_digest.ToHex(), "; name one by its digest"));
      }
      found = manifest.model_digest;
    }
    after = page.next_after_key();
  } while (!after.empty());
  if (!found.has_value()) {
    return absl::NotFoundError(absl::StrCat("no stored object is of a model called ", model));
  }
  return *found;
}

absl::Status RemoveMany(const Arguments& arguments) {
  KVTIER_RETURN_IF_ERROR(NoArguments(arguments));
  const std::string model = absl::GetFlag(FLAGS_model);
  const bool is_dry_run = absl::GetFlag(FLAGS_dry_run);
  if (absl::GetFlag(FLAGS_all) != model.empty()) {
    return absl::InvalidArgumentError("give --model or --all, not both");
  }
  if (!absl::GetFlag(FLAGS_key).empty() || absl::GetFlag(FLAGS_keep_ratio) != 0) {
    return absl::InvalidArgumentError("--key and --keep_ratio are for one object");
  }
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  v1::DeleteManyRequest request;
  request.set_dry_run(is_dry_run);
  if (model.empty()) {
    request.set_all(true);
  } else {
    KVTIER_ASSIGN_OR_RETURN(const Digest digest, ModelDigest(*store, model));
    request.set_model_digest(std::string(digest.AsStringView()));
  }
  KVTIER_ASSIGN_OR_RETURN(const v1::DeleteManyResponse total,
                          store->DeleteMany(request, nullptr, Deadline()));
  if (absl::GetFlag(FLAGS_json)) {
    std::puts(
        Dump({{"objects", total.objects()}, {"bytes", total.bytes()}, {"dry_run", is_dry_run}})
            .c_str());
  } else {
    absl::PrintF("%s %d objects, %s\n", is_dry_run ? "would remove" : "removed", total.objects(),
                 FormatBytes(total.bytes()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Remove(const Arguments& arguments) {
  if (absl::GetFlag(FLAGS_all) || !absl::GetFlag(FLAGS_model).empty()) {
    return RemoveMany(arguments);
  }
  if (absl::GetFlag(FLAGS_dry_run)) {
    return absl::InvalidArgumentError("--dry_run is for --model and --all");
  }
  KVTIER_ASSIGN_OR_RETURN(const Key key, RequiredKey(arguments));
  const double keep_ratio = absl::GetFlag(FLAGS_keep_ratio);
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  KVTIER_ASSIGN_OR_RETURN(const v1::DeleteResponse response,
                          store->Delete(key, keep_ratio, Deadline()));
  if (absl::GetFlag(FLAGS_json)) {
    const nlohmann::json json =
        response.has_object() ? ToJson(response.object()) : nlohmann::json(nullptr);
    std::puts(Dump(json).c_str());
  } else if (response.has_object()) {
    absl::PrintF("%s", FormatBands(response.object()));
  } else {
    absl::PrintF("removed %s\n", key.ToHex());
  }
  return absl::OkStatus();
}

absl::Status Verify(const Arguments& arguments) {
  if (const std::string folder = absl::GetFlag(FLAGS_data_dir); !folder.empty()) {
    KVTIER_RETURN_IF_ERROR(NoArguments(arguments));
    if (!std::filesystem::is_directory(folder)) {
      return absl::NotFoundError(absl::StrCat("no such folder: ", folder));
    }
    const bool fetched = std::filesystem::exists(absl::StrCat(folder, "/manifest"));
    KVTIER_ASSIGN_OR_RETURN(const Checked checked,
                            fetched ? VerifyFetched(folder) : VerifyStoreFolder(folder));
    return PrintChecked(checked);
  }
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  std::vector<Key> keys;
  if (!absl::GetFlag(FLAGS_key).empty() || !arguments.empty()) {
    KVTIER_ASSIGN_OR_RETURN(const Key key, RequiredKey(arguments));
    keys.push_back(key);
  } else {
    std::string after;
    do {
      KVTIER_ASSIGN_OR_RETURN(const v1::ListResponse page, store->List(after, 0, Deadline()));
      for (const v1::ObjectSummary& object : page.objects()) {
        KVTIER_ASSIGN_OR_RETURN(const Key key,
                                Key::FromBytes(absl::string_view(object.name().key())));
        keys.push_back(key);
      }
      after = page.next_after_key();
    } while (!after.empty());
  }
  Checked checked;
  absl::Status first;  // The first damage; we go on to report all.
  ProgressBar bar;
  for (const Key& key : keys) {
    const absl::StatusOr<v1::VerifyResponse> response = store->Verify(key, Deadline());
    if (absl::IsDataLoss(response.status())) {
      std::fprintf(stderr, "kvtierctl: key %s: %s\n", key.ToHex().c_str(),
                   response.status().ToString().c_str());
      first.Update(response.status());
      continue;
    }
    KVTIER_RETURN_IF_ERROR(response.status());
    checked.bytes += response->bytes();
    bar.Update("verifying", ++checked.objects, keys.size());
  }
  KVTIER_RETURN_IF_ERROR(first);
  return PrintChecked(checked);
}

namespace {

// Every field of the message, by its name.
std::vector<std::pair<std::string, uint64_t>> ListLimits(const v1::Limits& limits) {
  using google::protobuf::FieldDescriptor;
  std::vector<std::pair<std::string, uint64_t>> list;
  const google::protobuf::Descriptor& fields = *v1::Limits::descriptor();
  const google::protobuf::Reflection& reflection = *v1::Limits::GetReflection();
  for (int i = 0; i < fields.field_count(); ++i) {
    const FieldDescriptor* const field = fields.field(i);
    list.emplace_back(field->name(), field->cpp_type() == FieldDescriptor::CPPTYPE_UINT32
                                         ? reflection.GetUInt32(limits, field)
                                         : reflection.GetUInt64(limits, field));
  }
  return list;
}

}  // namespace

absl::Status Stats(const Arguments& arguments) {
  KVTIER_RETURN_IF_ERROR(NoArguments(arguments));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  KVTIER_ASSIGN_OR_RETURN(const v1::StatsResponse stats, store->Stats(Deadline()));
  if (absl::GetFlag(FLAGS_json)) {
    nlohmann::json json = {{"objects", stats.objects()},
                           {"host_bytes", stats.host().bytes()},
                           {"host_budget_bytes", stats.host().budget_bytes()},
                           {"frame_bytes_max", stats.limits().frame_bytes_max()},
                           {"object_bytes_max", stats.limits().object_bytes_max()},
                           {"tenant",
                            {{"objects", stats.tenant().objects()},
                             {"bytes", stats.tenant().bytes()},
                             {"quota_bytes", stats.tenant().quota_bytes()},
                             {"pinned_bytes", stats.tenant().pinned_bytes()},
                             {"pinned_bytes_max", stats.tenant().pinned_bytes_max()}}},
                           {"leases",
                            {{"leases", stats.leases().leases()},
                             {"bytes", stats.leases().bytes()},
                             {"bytes_max", stats.leases().bytes_max()}}},
                           {"limits", nlohmann::json::object()},
                           {"version", stats.version()}};
    for (const auto& [name, value] : ListLimits(stats.limits())) json["limits"][name] = value;
    if (stats.has_disk()) {
      json["disk_bytes"] = stats.disk().bytes();
      json["disk_budget_bytes"] = stats.disk().budget_bytes();
    }
    std::puts(Dump(json).c_str());
    return absl::OkStatus();
  }
  const auto budget = [](uint64_t bytes) {
    return bytes == 0 ? std::string("unbounded") : FormatBytes(bytes);
  };
  std::vector<std::vector<std::string>> rows = {{"tier", "held", "budget"}};
  rows.push_back({"host", FormatBytes(stats.host().bytes()), budget(stats.host().budget_bytes())});
  if (stats.has_disk()) {
    rows.push_back(
        {"disk", FormatBytes(stats.disk().bytes()), budget(stats.disk().budget_bytes())});
  }
  rows.push_back(
      {"leases", FormatBytes(stats.leases().bytes()), budget(stats.leases().bytes_max())});
  absl::PrintF("%d objects, %d leases\n%s", stats.objects(), stats.leases().leases(),
               FormatTable(rows));
  const v1::TenantStats& tenant = stats.tenant();
  absl::PrintF(
      "own: %d objects, %s of %s; pinned %s of %s\n", tenant.objects(), FormatBytes(tenant.bytes()),
      tenant.quota_bytes() == 0 ? "no quota" : FormatBytes(tenant.quota_bytes()),
      FormatBytes(tenant.pinned_bytes()),
      tenant.pinned_bytes_max() == 0 ? "no limit" : FormatBytes(tenant.pinned_bytes_max()));
  std::vector<std::vector<std::string>> table = {{"limit", "value"}};
  for (const auto& [name, value] : ListLimits(stats.limits())) {
    table.push_back({name, absl::StrCat(value)});
  }
  absl::PrintF("%s", FormatTable(table));
  return absl::OkStatus();
}

}  // namespace kvtier::ctl
