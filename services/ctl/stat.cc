// kvtierctl stat: one object, its bands and heads, as text, JSON or a picture.

#include <cstdio>

#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/bytes.h"
#include "base/status_macros.h"
#include "kvcache/transport.h"
#include "services/client.h"
#include "services/ctl/commands.h"
#include "services/ctl/flags.h"
#include "services/ctl/input.h"
#include "services/ctl/object_report.h"
#include "services/ctl/output.h"

ABSL_FLAG(std::string, plot, "", "write a picture of the object here, as SVG");
ABSL_FLAG(double, heads_at, 0.3, "show how many heads keep how much at this ratio");

namespace kvtier::ctl {
namespace {

void Print(const v1::ObjectSummary& object, const Manifest& manifest, const ObjectReport& report,
           uint32_t heads_band) {
  absl::PrintF("key       %s\nupload    %s\nmodel     %s, recipe %s\n", ToHex(object.name().key()),
               ToHex(object.name().upload_id()), object.model(), object.recipe());
  absl::PrintF("context   %d tokens (+ %d protected), dense cache %s\n", object.context_tokens(),
               object.system_tokens(), FormatBytes(object.dense_bytes()));
  absl::PrintF(
      "survives  %s, sealed %s\n",
      object.durability() == v1::DURABILITY_DISK ? "crash and restart" : "until the store ends",
      absl::FormatTime(absl::FromUnixMillis(object.sealed_unix_ms())));
  absl::PrintF("kept      %s\n", FormatAttributes(object));
  if (manifest.fidelity.has_value()) {
    absl::PrintF("repeats   measured on %d tokens of %d chunks\n", manifest.fidelity->tokens,
                 manifest.fidelity->chunks);
  }
  absl::PrintF("%s", FormatReport(report, object));
  if (report.layers.empty()) return;
  absl::PrintF("\n%s", FormatHeads(report, heads_band));
}

}  // namespace

absl::Status Stat(const Arguments& arguments) {
  KVTIER_ASSIGN_OR_RETURN(const Key key, RequiredKey(arguments));
  KVTIER_ASSIGN_OR_RETURN(const Ratio heads_at, Ratio::FromDouble(absl::GetFlag(FLAGS_heads_at)));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  KVTIER_ASSIGN_OR_RETURN(const v1::GetObjectResponse response, store->GetObject(key, Deadline()));
  KVTIER_ASSIGN_OR_RETURN(const Manifest manifest,
                          DecodeManifest(AsBytes(absl::string_view(response.manifest()))));
  const ObjectReport report = MakeReport(manifest);
  if (const std::string file = absl::GetFlag(FLAGS_plot); !file.empty()) {
    KVTIER_RETURN_IF_ERROR(WriteFile(file, PlotReport(report, manifest)));
  }
  if (absl::GetFlag(FLAGS_json)) {
    nlohmann::json json = ToJson(response.object());
    AddReport(report, manifest, json);
    std::puts(Dump(json).c_str());
    return absl::OkStatus();
  }
  // As a fetch would round it, were all bands there: up to the next edge.
  uint32_t band = 0;
  while (band + 1 < report.bands.size() && report.bands[band].edge < heads_at) ++band;
  Print(response.object(), manifest, report, band);
  return absl::OkStatus();
}

}  // namespace kvtier::ctl
