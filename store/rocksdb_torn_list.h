// The end of RocksDB's list of files (its MANIFEST) that a loss of power has torn.
//
// RocksDB appends an entry, syncs the list, and only then acknowledges what the entry says. Power
// that goes before that sync leaves any sectors of the entry: where one is missing in front of one
// that is there, the file has zeros. RocksDB forgives an entry that is too short, takes one with
// zeros in it for damage, and refuses to open. Nothing in such an entry was acknowledged, so the
// list may end before it.
//
// What was acknowledged must not be cut off. An end is torn only if
//   - it begins where the entries that are whole from the start of the file on end,
//   - a sector of it is zeros, which a flipped byte is not, and
//   - no whole entry is behind it: one would have been written after this one was synced. (RocksDB
//     syncs entries of two threads together now and then. If power tears the first of those and
//     leaves the second, the list counts as damaged.)
// Who cuts it off looks first at what the database would be without it (WithoutTornEnd): whether
// the list is as long then as it is known to have been synced (store/rocksdb_list_mark.h), and all
// is there that records name. docs/adr/0012-what-damage-costs.md.
//
// Private to the files that see RocksDB. Stateless; nothing else may have the database open.
#ifndef KVTIER_STORE_ROCKSDB_TORN_LIST_H_
#define KVTIER_STORE_ROCKSDB_TORN_LIST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rocksdb {
class Env;
}

namespace kvtier {

// Where the whole entries of a list end, if what is behind them is a torn end, as above. Nothing
// for a list that is whole, ends with an entry that is merely too short, or is damaged otherwise.
std::optional<uint64_t> FindTornEnd(absl::string_view list);

struct TornList {
  std::string file;              // Its path.
  uint64_t whole_bytes;          // That stay,
  uint64_t torn_bytes;           // and behind them those that do not.
  std::string ToString() const;  // For messages: the file and the limits.
};

// Of the database in `folder`. `env` may be null: the default. Takes as much memory as the list
// has bytes (RocksDbTierOptions::list_bytes). Errors as of rocksdb_files.
absl::StatusOr<std::optional<TornList>> FindTornList(rocksdb::Env* env, const std::string& folder);
// `env` (may be null, outlives the result), except that the list ends where it is whole. Shared, so
// that who keeps it need not know what RocksDB's Env is.
std::shared_ptr<rocksdb::Env> WithoutTornEnd(rocksdb::Env* env, const TornList& list);
// Ends the list there, for good. A crash before it returns may leave the list torn as it was.
absl::Status CutTornEnd(rocksdb::Env* env, const TornList& list);

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_TORN_LIST_H_
