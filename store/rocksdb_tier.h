// Segments and sealed records in a RocksDB folder, seen through store/rocksdb_database.h.
//
// Layout (docs/adr/0004-rocksdb-layout.md): column family `segments`, keys (upload id, band, layer,
// part) in order, each (upload, band) written by SstFileWriter and ingested as whole files, so that
// dropping a band frees whole files; auto-compaction off there. Column families `objects` and
// `residency` hold small records through the WAL, synced.
#ifndef KVTIER_STORE_ROCKSDB_TIER_H_
#define KVTIER_STORE_ROCKSDB_TIER_H_

#include <memory>
#include <string>

#include "store/durable_tier.h"

namespace rocksdb {
class Env;
}

namespace kvtier {

struct RocksDbTierOptions {
  std::string folder;           // Created if missing. One process at a time.
  uint64_t budget_bytes = 0;    // 0: until the disk is full.
  rocksdb::Env* env = nullptr;  // Not owned; tests inject faults here. Null: the default.
};

// FAILED_PRECONDITION: a store of another format version (named), or in use by another process.
// UNAVAILABLE: the folder cannot be opened.
absl::StatusOr<std::unique_ptr<DurableTier>> OpenRocksDbTier(const RocksDbTierOptions& options);

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_TIER_H_
