// Files beside a database of RocksDB, through the same Env, so that tests reach them with its
// faults. A null Env is the default one. Stateless.
//   NOT_FOUND           no such file; empty message
//   RESOURCE_EXHAUSTED  the disk is full
//   UNAVAILABLE         anything else that a file system does to one, naming the path
#ifndef KVTIER_STORE_ROCKSDB_FILES_H_
#define KVTIER_STORE_ROCKSDB_FILES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rocksdb {
class Env;
}

namespace kvtier::rocksdb_files {

absl::StatusOr<bool> Exists(rocksdb::Env* env, const std::string& path);
absl::StatusOr<std::string> Read(rocksdb::Env* env, const std::string& path);
// Whole and synced, or not there at all.
absl::Status WriteAtomically(rocksdb::Env* env, const std::string& folder, const std::string& name,
                             absl::string_view content);
// Names of what is in it, in no order.
absl::StatusOr<std::vector<std::string>> ListFolder(rocksdb::Env* env, const std::string& folder);
// Creates the folder and those above it, as far as they are missing, durably: a folder is a name in
// its parent, and without an fsync of that one a loss of power takes it with all that is in it.
absl::Status CreateFolder(rocksdb::Env* env, const std::string& folder);
// Creates the folder if it is missing; removes every file in it.
absl::Status EmptyFolder(rocksdb::Env* env, const std::string& folder);
// Fine if it is not there.
absl::Status Remove(rocksdb::Env* env, const std::string& path);
// Whether files in this folder, which exists, can be read and written past the page cache: tried
// with a block, which is removed again.
bool HasDirectIo(rocksdb::Env* env, const std::string& folder);

}  // namespace kvtier::rocksdb_files

#endif  // KVTIER_STORE_ROCKSDB_FILES_H_
