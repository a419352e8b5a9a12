#include "store/rocksdb_status.h"

#include <string>

#include "rocksdb/status.h"

namespace kvtier {

absl::Status FromRocks(absl::string_view doing, const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  if (status.IsNotFound()) return absl::NotFoundError("");
  const std::string message = absl::StrCat(doing, ": ", status.ToString());
  if (status.IsNoSpace() || status.IsMemoryLimit() ||
      status.subcode() == rocksdb::Status::kSpaceLimit) {
    return absl::ResourceExhaustedError(message);
  }
  if (status.IsCorruption()) return absl::DataLossError(message);
  return absl::UnavailableError(message);
}

}  // namespace kvtier
