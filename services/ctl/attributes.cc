// kvtierctl pin, unpin, ttl: what is decided about an object, not its bytes.

#include <cstdio>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "services/client.h"
#include "services/ctl/commands.h"
#include "services/ctl/flags.h"
#include "services/ctl/output.h"

namespace kvtier::ctl {
namespace {

absl::Status Apply(const Key& key, const StoreClient::AttributeChange& change) {
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreClient> store, OpenStore());
  KVTIER_ASSIGN_OR_RETURN(const v1::ObjectSummary object,
                          store->SetAttributes(key, change, Deadline()));
  if (absl::GetFlag(FLAGS_json)) {
    std::puts(Dump(ToJson(object)).c_str());
  } else {
    absl::PrintF("%s is %s\n", key.ToHex(), FormatAttributes(object));
  }
  return absl::OkStatus();
}

absl::Status SetPinned(const Arguments& arguments, bool pinned) {
  KVTIER_ASSIGN_OR_RETURN(const Key key, RequiredKey(arguments));
  return Apply(key, {.pinned = pinned});
}

}  // namespace

absl::Status Pin(const Arguments& arguments) { return SetPinned(arguments, true); }
absl::Status Unpin(const Arguments& arguments) { return SetPinned(arguments, false); }

absl::Status Ttl(const Arguments& arguments) {
  if (arguments.size() != 2) {
    return absl::InvalidArgumentError("name an object and how long it is to live: KEY 36h");
  }
  KVTIER_ASSIGN_OR_RETURN(const Key key, Key::FromHex(arguments[0]));
  absl::Duration ttl;
  if (arguments[1] == "never") return Apply(key, {.ttl = absl::InfiniteDuration()});
  if (!absl::ParseDuration(arguments[1], &ttl) || ttl < absl::Milliseconds(1) ||
      ttl > limits::kTtlMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", arguments[1], "' is no time to live: never, or like 90s, 36h, at most ",
                     absl::FormatDuration(limits::kTtlMax)));
  }
  return Apply(key, {.ttl = ttl});
}

}  // namespace kvtier::ctl
