// Runs calls of RocksDB: its statuses become ours, and nothing that it throws passes. Private to
// the files that see RocksDB.
//   NOT_FOUND           it said so; empty message
//   RESOURCE_EXHAUSTED  the disk is full, or memory
//   DATA_LOSS           RocksDB found damage
//   UNAVAILABLE         anything else that a file system does to one
#ifndef KVTIER_STORE_ROCKSDB_STATUS_H_
#define KVTIER_STORE_ROCKSDB_STATUS_H_

#include <exception>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace rocksdb {
class Status;
}

namespace kvtier {

// `doing` begins the message of an error.
absl::Status FromRocks(absl::string_view doing, const rocksdb::Status& status);

// `call` returns a rocksdb::Status.
template <typename Call>
absl::Status Rocks(absl::string_view doing, Call call) {
  try {
    return FromRocks(doing, call());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(doing, ": out of memory"));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat(doing, ": ", error.what()));
  }
}

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_STATUS_H_
