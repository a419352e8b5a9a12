// kvtierctl reband: other bands for a stored object, from its own bytes, without the model.

#include <cstdio>
#include <map>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "compressor/rebanding.h"
#include "compressor/rectangle_file.h"
#include "services/client.h"
#include "services/ctl/commands.h"
#include "services/ctl/flags.h"
#include "services/ctl/output.h"

ABSL_DECLARE_FLAG(std::string, out);
ABSL_FLAG(std::string, edges, "", "new band edges, e.g. 0.05,0.2,1");
ABSL_FLAG(bool, drop_rest, false, "with --edges: give up for good what lies above the last edge");
ABSL_FLAG(uint64_t, bytes, 0, "a first band of at most so many bytes, and one with the rest");
ABSL_FLAG(double, rectangle, 0, "as many rows in every head, at this ratio");
ABSL_FLAG(std::string, of, "",
          "with --rectangle: every head of a layer, or of the object; empty: layer");
ABSL_FLAG(bool, dry_run, false, "say what would be stored, store nothing");

namespace kvtier::ctl {
namespace {

// Keeps what arrives.
class StoredBandsSink final : public SegmentSink {
 public:
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    stored_.manifest = std::move(manifest);
    stored_.band_count = band_count;
    stored_.segments.resize(size_t{band_count} * stored_.manifest->geometry.layer_count());
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef segment) override {
    bytes_ += segment.bytes().size();
    bar_.Update("fetching", bytes_, stored_.manifest->PrefixBytes(stored_.band_count));
    stored_.segments[band.value() * stored_.manifest->geometry.layer_count() + layer.value()] =
        std::move(segment);
    return absl::OkStatus();
  }
  StoredBands Finish() && { return std::move(stored_); }

 private:
  StoredBands stored_;
  uint64_t bytes_ = 0;
  ProgressBar bar_;
};

// All that is resident of one upload.
absl::StatusOr<StoredBands> FetchResident(const Key& key, const UploadId& upload) {
  FetchRequest request;
  KVTIER_ASSIGN_OR_RETURN(request.tenant, OwnTenant());
  request.key = key;
  request.upload_id = upload;
  KVTIER_ASSIGN_OR_RETURN(request.min_ratio, Ratio::FromMillionths(1));
  StoredBandsSink sink;
  const auto transport = MakeGrpcTransport(MakeChannel(absl::GetFlag(FLAGS_store)));
  KVTIER_RETURN_IF_ERROR(transport->Fetch(request, Deadline(), sink));
  return std::move(sink).Finish();
}

// What the command line asks for.
struct Wish {
  std::optional<BandEdges> edges;
  bool drop_rest = false;
  std::optional<uint64_t> bytes;
  std::optional<Ratio> rectangle;
  Rectangle of = Rectangle::kNone;
};

absl::StatusOr<Wish> ReadWish() {
  Wish wish;
  const std::string edges = absl::GetFlag(FLAGS_edges);
  const uint64_t bytes = absl::GetFlag(FLAGS_bytes);
  const double rectangle = absl::GetFlag(FLAGS_rectangle);
  if (int{!edges.empty()} + int{bytes != 0} + int{rectangle != 0} != 1) {
    return absl::InvalidArgumentError("re-band with one of --edges, --bytes, --rectangle");
  }
  if (!edges.empty()) {
    KVTIER_ASSIGN_OR_RETURN(wish.edges, BandEdges::ParseTruncated(edges));
  }
  if (bytes != 0) wish.bytes = bytes;
  wish.drop_rest = absl::GetFlag(FLAGS_drop_rest);
  if (wish.drop_rest && edges.empty()) {
    return absl::InvalidArgumentError("--drop_rest goes with --edges; nothing else drops bands");
  }
  const std::string of = absl::GetFlag(FLAGS_of);
  if (rectangle == 0) {
    if (!absl::GetFlag(FLAGS_out).empty()) {
      return absl::InvalidArgumentError("--out takes a rectangle: give --rectangle too");
    }
    if (!of.empty()) {
      return absl::InvalidArgumentError("--of shapes a rectangle: give --rectangle too");
    }
    return wish;
  }
  KVTIER_ASSIGN_OR_RETURN(wish.rectangle, Ratio::FromDouble(rectangle));
  if (!of.empty() && of != "layer" && of != "object") {
    return absl::InvalidArgumentError(
        absl::StrCat("--of is '", of, "'; it must be layer or object"));
  }
  wish.of = of == "object" ? Rectangle::kObject : Rectangle::kLayer;
  return wish;
}

absl::StatusOr<RebandPlan> MakePlan(const Rebander& rebander, const Wish& wish) {
  if (wish.edges.has_value()) {
    if (wish.edges->last() < rebander.ratio() && !wish.drop_rest) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the edges end at ", wish.edges->last().ToString(), ", the bands that are here at ",
          rebander.ratio().ToString(), ": the rest would be gone for good. Add ",
          rebander.ratio().ToString(), " to the edges, or give --drop_rest"));
    }
    return rebander.Plan(*wish.edges);
  }
  if (wish.bytes.has_value()) return rebander.PlanWithin(*wish.bytes);
  return rebander.PlanRectangle(*wish.rectangle, wish.of);
}

nlohmann::json BandsOf(const RebandPlan& plan) {
  nlohmann::json bands = nlohmann::json::array();
  for (uint32_t b = 0; b < plan.edges.size(); ++b) {
    bands.push_back({{"ratio", plan.edges[b].ToDouble()},
                     {"bytes", plan.band_bytes[b]},
                     {"bytes_up_to_here", plan.PrefixBytes(b + 1)},
                     {"score_mass", plan.score_mass[b]}});
  }
  return bands;
}

std::string FormatPlan(const RebandPlan& plan, const Manifest& stored) {
  std::vector<std::vector<std::string>> rows = {{"ratio", "bytes up to here", "of dense"}};
  for (uint32_t b = 0; b < plan.edges.size(); ++b) {
    const uint64_t bytes = plan.PrefixBytes(b + 1);
    rows.push_back({plan.edges[b].ToString(), absl::StrCat(bytes),
                    absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(bytes) /
                                                   static_cast<double>(stored.dense_bytes()))});
  }
  return FormatTable(rows);
}

// What became of the new object.
struct Outcome {
  std::string what;                             // For people.
  std::optional<v1::ObjectSummary> in_store{};  // What the store has under its key after a Put.
  bool stored = false;                          // That is the new one.
  absl::Status status{};                        // Of the command.
};

// Whether a fetch at `ratio` gives exactly that.
bool HasEdge(const v1::ObjectSummary& object, Ratio ratio) {
  for (uint32_t b = 0; b < object.resident_bands(); ++b) {
    if (object.bands(static_cast<int>(b)).edge_millionths() == ratio.millionths()) return true;
  }
  return false;
}

// Stores a packed object. One with the key of its source replaces that one. A rectangle has a key
// of its own, the same for every ratio: what is stored under it stays if it reaches as far, and is
// replaced if it does not, as with any Put.
absl::StatusOr<Outcome> Store(StoreClient& store, const CompressedObject& object,
                              v1::Durability durability, const Manifest& source) {
  const Manifest& made = *object.manifest;
  const bool same_key = made.key == source.key;
  ProgressBar bar;
  KVTIER_ASSIGN_OR_RETURN(
      v1::ObjectSummary summary,
      store.Put(
          object, durability,
          [&](uint64_t done) { bar.Update("upload", done, made.total_bytes()); }, CancelToken(),
          Deadline(), same_key ? std::optional(source.upload_id) : std::nullopt));
  const std::string id = ToHex(summary.name().upload_id());
  const Ratio ratio = made.bands.back().edge;
  Outcome outcome;
  outcome.stored = id == made.upload_id.ToHex();
  if (outcome.stored) {
    outcome.what = absl::StrCat("stored as upload ", id);
  } else if (HasEdge(summary, ratio)) {
    outcome.what = absl::StrCat("nothing stored: upload ", id, " has an edge at ", ratio.ToString(),
                                " already");
  } else {
    outcome.what = absl::StrCat("nothing stored: upload ", id, " stays, which reaches further");
    outcome.status = absl::AlreadyExistsError(absl::StrCat(
        "the store kept upload ", id, " of key ", made.key.ToHex(), ", which reaches above ",
        ratio.ToString(), " and has no edge there: ", "re-band that key, or remove it first"));
  }
  outcome.in_store = std::move(summary);
  return outcome;
}

}  // namespace

absl::Status Reband(const Arguments& arguments) {
  KVTIER_ASSIGN_OR_RETURN(const Key key, RequiredKey(arguments));
  KVTIER_ASSIGN_OR_RETURN(const Wish wish, ReadWish());
  const std::string out = absl::GetFlag(FLAGS_out);
  const bool dry_run = absl::GetFlag(FLAGS_dry_run);
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  KVTIER_ASSIGN_OR_RETURN(const v1::GetObjectResponse found, store->GetObject(key, Deadline()));
  KVTIER_ASSIGN_OR_RETURN(
      const UploadId upload,
      UploadId::FromBytes(absl::string_view(found.object().name().upload_id())));
  KVTIER_ASSIGN_OR_RETURN(StoredBands stored, FetchResident(key, upload));

  const absl::Time begin = Clock::Real().Now();
  KVTIER_ASSIGN_OR_RETURN(const Rebander rebander, Rebander::Create(std::move(stored)));
  KVTIER_ASSIGN_OR_RETURN(const RebandPlan plan, MakePlan(rebander, wish));
  std::optional<CompressedObject> object;
  if (!dry_run) {
    KVTIER_ASSIGN_OR_RETURN(object, rebander.Pack(plan));
  }
  const double seconds = absl::ToDoubleSeconds(Clock::Real().Now() - begin);

  Outcome outcome{.what = "nothing stored: --dry_run"};
  if (object.has_value() && !out.empty()) {
    KVTIER_RETURN_IF_ERROR(WriteRectangleFile(*object, out));
    outcome.what = absl::StrCat("written to ", out);
  } else if (object.has_value()) {
    KVTIER_ASSIGN_OR_RETURN(
        outcome, Store(*store, *object, found.object().durability(), rebander.manifest()));
  }
  if (absl::GetFlag(FLAGS_json)) {
    nlohmann::json json = {
        {"key", plan.key.ToHex()},  {"recipe", plan.recipe}, {"from_upload_id", upload.ToHex()},
        {"stored", outcome.stored}, {"seconds", seconds},    {"bands", BandsOf(plan)}};
    if (outcome.in_store.has_value()) {
      json[outcome.stored ? "upload_id" : "kept_upload_id"] =
          ToHex(outcome.in_store->name().upload_id());
    }
    std::puts(Dump(json).c_str());
    return outcome.status;
  }
  absl::PrintF("key     %s, recipe %s\n", plan.key.ToHex(), plan.recipe);
  absl::PrintF("before  %d bands to ratio %s, %s resident\n", found.object().bands_size(),
               rebander.ratio().ToString(),
               FormatBytes(rebander.manifest().PrefixBytes(found.object().resident_bands())));
  absl::PrintF("after   %s (%.2f s without transfer)\n", outcome.what, seconds);
  // A table is of what is there, or could be: not of what the store did not take.
  if (outcome.stored || !outcome.in_store.has_value()) {
    absl::PrintF("%s", FormatPlan(plan, rebander.manifest()));
  } else {
    absl::PrintF("%s", FormatBands(*outcome.in_store));
  }
  return outcome.status;
}

}  // namespace kvtier::ctl
