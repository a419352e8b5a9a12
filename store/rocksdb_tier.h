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
  std::string folder;  // Created if missing. One process at a time may write.
  // Of segments, as ChargeOf counts them. 0: until the disk is full.
  uint64_t budget_bytes = 0;
  // Of what RocksDB's files take beside that: records, logs, tables that wait to be merged. Held
  // unless records alone come near it (docs/adr/0016). 0: 192 MiB.
  uint64_t files_bytes = 0;
  // And of a list of files, of which there are two for a moment: 160 bytes for each band, and as
  // much again to grow. With more bands each write of one writes the whole list. 0: 256 MiB.
  uint64_t list_bytes = 0;
  // What RocksDB takes for itself, whatever the tier holds. 0: 40 MiB.
  uint64_t memory_bytes = 0;
  // Segments are read past the page cache: the host budget is all the memory that their bytes take,
  // and a read that verifies them reads the disk. Where the file system refuses it, they are read
  // through the cache, and a line in the log says so (docs/adr/0016-past-the-page-cache.md).
  bool direct_reads = true;
  rocksdb::Env* env = nullptr;  // Not owned; tests inject faults here. Null: the default.
  // Refuses a folder that is no store yet, where it would become one.
  bool must_exist = false;
  // Implies must_exist. Changes nothing in the folder: Recover() reports what is damaged or left
  // over and leaves it there, and every method that would write is FAILED_PRECONDITION.
  bool read_only = false;
};

// FAILED_PRECONDITION: a store of another format version (named), in use by another process, or a
// folder with something else in it, which is left as it is.
// UNAVAILABLE: the folder cannot be opened.
absl::StatusOr<std::unique_ptr<DurableTier>> OpenRocksDbTier(const RocksDbTierOptions& options);

// How much of a disk budget RocksDB's files are to have beside segments: a 32nd,
// between 1 and 192 MiB.
uint64_t RocksDbFilesBytes(uint64_t disk_budget_bytes);
// How much of it one list of files is to have: a 128th up to 64 MiB, from 64 GiB on a 1024th.
// Enough for bands of 20 KiB on average up to a budget of 8 GiB, rising to 160 KiB at 64 GiB and
// on.
uint64_t RocksDbListBytes(uint64_t disk_budget_bytes);
// How much of a host budget RocksDB is to have for itself: an eighth, between 1 and 40 MiB.
uint64_t RocksDbMemoryBytes(uint64_t host_budget_bytes);

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_TIER_H_
