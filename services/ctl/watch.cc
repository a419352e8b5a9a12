// kvtierctl watch: a store's events, one line each.

#include <cstdio>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "services/client.h"
#include "services/ctl/commands.h"
#include "services/ctl/flags.h"
#include "services/ctl/output.h"

ABSL_FLAG(uint64_t, events, 0, "end after so many events; 0: go on until --timeout");
ABSL_FLAG(uint64_t, incarnation, 0, "of the store, as an earlier watch printed it");
ABSL_FLAG(uint64_t, after, 0,
          "with --incarnation: go on after the event of this number, without a snapshot if the "
          "store still knows those that follow");

namespace kvtier::ctl {
namespace {

std::string ReasonName(v1::ResidencyChange::Reason reason) {
  switch (reason) {
    case v1::ResidencyChange::REASON_DEGRADED:
      return "degraded";
    case v1::ResidencyChange::REASON_REQUESTED:
      return "requested";
    case v1::ResidencyChange::REASON_LOST:
      return "lost";
    default:  // Enums of proto3 are open.
      return absl::StrCat("reason ", static_cast<int>(reason));
  }
}

std::string ReasonName(v1::Removal::Reason reason) {
  switch (reason) {
    case v1::Removal::REASON_DELETED:
      return "deleted";
    case v1::Removal::REASON_REPLACED:
      return "replaced";
    case v1::Removal::REASON_EVICTED:
      return "evicted";
    case v1::Removal::REASON_EXPIRED:
      return "expired";
    case v1::Removal::REASON_LOST:
      return "lost";
    default:
      return absl::StrCat("reason ", static_cast<int>(reason));
  }
}

// {"event": "snapshot" | "sealed" | "bands" | "removed", ...}, without the line break.
nlohmann::json EventJson(const v1::WatchEvent& event) {
  nlohmann::json json = {{"sequence", event.sequence()},
                         {"incarnation", event.incarnation()},
                         {"unix_ms", event.unix_ms()},
                         {"key", ToHex(event.name().key())},
                         {"upload_id", ToHex(event.name().upload_id())}};
  if (event.has_sealed()) {
    json["event"] = "sealed";
    json["object"] = ToJson(event.sealed());
  } else if (event.has_residency()) {
    json["event"] = "bands";
    json["resident_bands"] = event.residency().resident_bands();
    json["reason"] = ReasonName(event.residency().reason());
  } else if (event.has_removed()) {
    json["event"] = "removed";
    json["reason"] = ReasonName(event.removed().reason());
  }
  return json;
}

std::string EventLine(const v1::WatchEvent& event) {
  std::string line = absl::StrCat(
      absl::FormatTime("%H:%M:%E3S", absl::FromUnixMillis(event.unix_ms()), absl::LocalTimeZone()),
      " ", event.sequence(), " ", ToHex(event.name().key()), " ");
  if (event.has_sealed()) {
    absl::StrAppend(&line, "sealed, ", event.sealed().resident_bands(), " bands");
  } else if (event.has_residency()) {
    absl::StrAppend(&line, event.residency().resident_bands(), " bands left, ",
                    ReasonName(event.residency().reason()));
  } else if (event.has_removed()) {
    absl::StrAppend(&line, "removed, ", ReasonName(event.removed().reason()));
  }
  return line;
}

void PrintSnapshot(const v1::WatchSnapshot& snapshot, bool as_json) {
  if (as_json) {
    nlohmann::json objects = nlohmann::json::array();
    for (const v1::ObjectSummary& object : snapshot.objects()) objects.push_back(ToJson(object));
    std::puts(Dump({{"event", "snapshot"},
                    {"sequence", snapshot.sequence()},
                    {"incarnation", snapshot.incarnation()},
                    {"last", snapshot.last()},
                    {"objects", std::move(objects)}})
                  .c_str());
    return;
  }
  for (const v1::ObjectSummary& object : snapshot.objects()) {
    std::puts(
        absl::StrCat("has ", ToHex(object.name().key()), ", ", object.resident_bands(), " bands")
            .c_str());
  }
  if (snapshot.last()) {
    std::puts(absl::StrCat("as of event ", snapshot.sequence(), " of incarnation ",
                           snapshot.incarnation())
                  .c_str());
  }
}

}  // namespace

absl::Status Watch(const Arguments& arguments) {
  KVTIER_RETURN_IF_ERROR(NoArguments(arguments));
  const bool as_json = absl::GetFlag(FLAGS_json);
  const uint64_t events_max = absl::GetFlag(FLAGS_events);
  v1::WatchRequest request;
  request.set_incarnation(absl::GetFlag(FLAGS_incarnation));
  request.set_after_sequence(absl::GetFlag(FLAGS_after));
  if (request.after_sequence() != 0 && request.incarnation() == 0) {
    return absl::InvalidArgumentError(
        "--after needs --incarnation: numbers begin anew with a store");
  }
  uint64_t event_count = 0;
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  const absl::Status status =
      store->Watch(request, Deadline(), [&](const v1::WatchResponse& response) {
        if (response.has_snapshot()) {
          PrintSnapshot(response.snapshot(), as_json);
        } else {
          std::puts(as_json ? Dump(EventJson(response.event())).c_str()
                            : EventLine(response.event()).c_str());
          ++event_count;
        }
        std::fflush(stdout);  // Whoever reads the pipe sees it now.
        return events_max == 0 || event_count < events_max;
      });
  return absl::IsDeadlineExceeded(status) ? absl::OkStatus() : status;
}

}  // namespace kvtier::ctl
