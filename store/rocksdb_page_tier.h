// Pages in a RocksDB database of their own, beside the one of objects: a burst of pages must not
// hold up the records of objects, nor a failure of one database the other.
//
//   FORMAT   text file: "kvtier pages format 1\n"
//   db/      RocksDB, two column families beside the default one, written in one synced batch:
//     pages  position (u64 big endian) -> the page's bytes
//     names  tenant name ++ 0x00 ++ page key (32 bytes)
//              -> u64 position ++ u32 bytes ++ CRC32C of the page ++ CRC32C
//
// Positions only rise: they count bytes written, kDiskOverheadBytes more for each page. What lies
// further back than the budget's window is gone: its name at the same moment, its bytes when
// RocksDB drops the oldest file (FIFO compaction: whole files go, nothing is ever rewritten).
// Numbers are little endian where not said otherwise; the last CRC32C covers the record's key and
// what is before it. Names and positions of all pages are in memory, about 300 bytes each, and are
// read at start-up.
#ifndef KVTIER_STORE_ROCKSDB_PAGE_TIER_H_
#define KVTIER_STORE_ROCKSDB_PAGE_TIER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "store/page_tier.h"

namespace rocksdb {
class Env;
}

namespace kvtier {

// What a page costs on disk beside its bytes, at most: its record of the names, and that of a page
// that went before, until they are compacted.
inline constexpr uint64_t kPageDiskOverheadBytes = 256;

struct RocksDbPageTierOptions {
  std::string folder;  // Created if missing. One process at a time.
  // Of all files together. At least kPageDiskBudgetMin. A page, and what is written at once, may
  // have a 64th of it.
  uint64_t budget_bytes = 0;
  rocksdb::Env* env = nullptr;  // Not owned; tests inject faults here. Null: the default.
};
inline constexpr uint64_t kPageDiskBudgetMin = uint64_t{16} << 20;

// INVALID_ARGUMENT: the budget is too small. FAILED_PRECONDITION: pages of another format version
// (named), or in use by another process. UNAVAILABLE, DATA_LOSS: the folder cannot be opened.
absl::StatusOr<std::unique_ptr<PageTier>> OpenRocksDbPageTier(
    const RocksDbPageTierOptions& options);

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_PAGE_TIER_H_
