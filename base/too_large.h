// RESOURCE_EXHAUSTED that waiting does not mend: what is asked for exceeds the whole of a limit, so
// nothing that others give back can make it fit. Whoever knows the limit says so here; whoever
// answers a caller then does not tell it to come back (services/status_grpc.h). The mark stays in
// this process: on the wire it is the absence of RetryInfo.
//
//   if (bytes > budget) return TooLargeError(StrCat("... of ", bytes, ", the budget is ", budget));
#ifndef KVTIER_BASE_TOO_LARGE_H_
#define KVTIER_BASE_TOO_LARGE_H_

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace kvtier {

inline constexpr absl::string_view kTooLargeMark = "kvtier/too-large";

// `message` names the thing and the limit.
inline absl::Status TooLargeError(absl::string_view message) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kTooLargeMark, absl::Cord());
  return status;
}

inline bool IsTooLarge(const absl::Status& status) {
  return status.GetPayload(kTooLargeMark).has_value();
}

}  // namespace kvtier

#endif  // KVTIER_BASE_TOO_LARGE_H_
