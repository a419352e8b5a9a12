// How far RocksDB's list of files (its MANIFEST) is known to have been synced: db/LIST says of
// which list, how many bytes of it, and what the last of them were.
//
// What is behind that byte may be an entry that a loss of power tore off: RocksDB takes a list that
// is too short for whole, and what else it refuses may be cut off (store/rocksdb_torn_list.h). What
// is in front of it was acknowledged, and RocksDB has relied on it since: after the entry of a
// flush it removes the log that had the same records, after that of a merge the tables that were
// merged. A list that has lost such an entry must not be opened: what only the entry named would be
// gone, without a word.
//
// The mark is a lower bound. It is written when the database has been opened, after each flush and
// each merge of records, which are rare, and when it is closed. Entries that bring or remove bands
// have none: records name them, and records are looked at (OpenRocksDbTier). Where it cannot be
// written, or is itself lost, less is known: a line in the log says so.
//
// Private to the files that see RocksDB.
#ifndef KVTIER_STORE_ROCKSDB_LIST_MARK_H_
#define KVTIER_STORE_ROCKSDB_LIST_MARK_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "base/mutex.h"

namespace rocksdb {
class DB;
class Env;
class EventListener;
}  // namespace rocksdb

namespace kvtier {

// Writes the mark of one database. Thread-safe.
class ListMarker {
 public:
  // `env`: null is the default one; outlives the result. The listener that it comes with (below)
  // keeps it alive for as long as RocksDB has that.
  static std::shared_ptr<ListMarker> Create(rocksdb::Env* env, std::string folder);

  // For DBOptions::listeners: marks after each flush and merge, on RocksDB's threads.
  static std::shared_ptr<rocksdb::EventListener> ListenerOf(std::shared_ptr<ListMarker> marker);

  // Marks what is synced now. A failure is logged, and changes nothing for RocksDB.
  void Mark(rocksdb::DB& db) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status TryMark(rocksdb::DB& db) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ListMarker(rocksdb::Env* env, std::string folder) : env_(env), folder_(std::move(folder)) {}

  rocksdb::Env* const env_;
  const std::string folder_;
  // Held across a disk write: what it orders is that write, RocksDB's threads alone wait for it.
  Mutex mutex_;
};

// DATA_LOSS naming the list and the byte: the list of the database in `folder` is shorter than is
// marked, or its bytes there are others. OK also where there is no list yet, no mark, as an older
// build leaves, or one that is damaged or of another list, from before RocksDB began a new one.
// Otherwise errors as of rocksdb_files.
absl::Status CheckMark(rocksdb::Env* env, const std::string& folder);

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_LIST_MARK_H_
