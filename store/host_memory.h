// Where segments in host memory lie: each band of an upload in a memory file of its own (memfd).
//
// One file a band, because the kernel is then the allocator: a band comes and goes whole, so
// nothing fragments; and because another process can map a band without seeing anything else. A
// band below Options::file_bytes_min lies on the heap, as does one beyond Options::files_max; those
// are served by streams, and copied into a file when a lease over shared memory wants one.
//
// Memory that a process outside was given is never used again for other bytes: its file is sealed
// when it is handed out, and goes when the last user is gone. Other files are kept for a while
// and used again, resized, because fresh pages cost many times more than used ones
// (docs/adr/0011-memory-files.md has the figures).
//
// Charged to the budget: what the kernel takes, whole pages. Thread-safe.
#ifndef KVTIER_STORE_HOST_MEMORY_H_
#define KVTIER_STORE_HOST_MEMORY_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "kvcache/segment_ref.h"
#include "store/memory_budget.h"

namespace kvtier {

// What a process outside needs in order to map a band.
struct MemoryFileView {
  int fd = -1;         // Borrowed: open for as long as the band's memory lives.
  uint64_t bytes = 0;  // Of the file.
};

// Where a band may lie.
enum class BandPlacement {
  kAny,   // A file if it is large enough and there are not too many, else the heap.
  kFile,  // A file, so that it can be handed out. An empty band has none.
};

// The memory of one band: its segments, layer by layer, laid end to end, each at a multiple of 64.
// Written once, segment by segment, by one owner; then sealed and shared. Methods that are const
// are thread-safe; the others need the only reference.
class BandMemory {
 public:
  virtual ~BandMemory() = default;

  // Where the bytes of one segment go; uninitialized before. REQUIRES: !sealed().
  virtual MutableByteSpan Writable(LayerIndex layer) = 0;
  // The bytes never change again. In builds with assertions the mapping becomes read-only.
  virtual void Seal() = 0;
  virtual bool sealed() const = 0;

  virtual uint32_t layer_count() const = 0;
  // Where segment `layer` begins inside the band.
  virtual uint64_t Offset(LayerIndex layer) const = 0;
  // The segment; it keeps the whole band's memory. REQUIRES: its bytes are written.
  virtual SegmentRef Segment(LayerIndex layer) const = 0;

  virtual uint64_t charged_bytes() const = 0;
  virtual bool is_file() const = 0;
  // The file, for another process to map, read-only: nobody can write, shrink or grow it from now
  // on. FAILED_PRECONDITION: this band lies on the heap. REQUIRES: sealed().
  virtual absl::StatusOr<MemoryFileView> Export() const = 0;
};

class HostMemory {
 public:
  struct Options {
    // Smaller bands lie on the heap: a file costs a descriptor and up to a page of padding.
    uint64_t file_bytes_min = 64 * limits::kKiB;
    // Memory files at once, kept ones included; bands beyond that lie on the heap.
    uint32_t files_max = limits::kMemoryFilesMax;
    // Most of the budget that is kept for the next allocation. It is no loss to anybody who
    // charges the budget, to whom kept memory gives way at once; below 1, other processes get the
    // rest back when bands go.
    double kept_fraction = 1;
  };
  struct Counters {
    uint64_t files = 0;           // Now, kept ones included.
    uint64_t files_recycled = 0;  // Allocations served from kept files, since start.
    // Times that there were files_max already: a band went to the heap, or kFile was refused.
    uint64_t files_refused = 0;
  };

  static std::shared_ptr<HostMemory> Create(const Options& options,
                                            std::shared_ptr<MemoryBudget> budget);
  virtual ~HostMemory() = default;

  // Memory for one band, not sealed. May outlive us.
  //   RESOURCE_EXHAUSTED  the budget (named), or the machine has no memory
  // RESOURCE_EXHAUSTED also for kFile when there are files_max.
  virtual absl::StatusOr<std::shared_ptr<BandMemory>> Allocate(
      const BandEntry& band, BandPlacement placement = BandPlacement::kAny) = 0;
  // The same for one piece of `bytes`, which is its layer 0: for what is read from disk and sent.
  // Not sealed by those who use it so, since it is written again and again.
  virtual absl::StatusOr<std::shared_ptr<BandMemory>> AllocatePiece(uint64_t bytes) = 0;
  virtual uint64_t ChargeOfPiece(uint64_t bytes) const = 0;
  // What Allocate will charge.
  virtual uint64_t ChargeOf(const BandEntry& band,
                            BandPlacement placement = BandPlacement::kAny) const = 0;
  // The band that these segments are, whole and in order, if they lie in our memory; else null.
  virtual std::shared_ptr<const BandMemory> Find(std::span<const SegmentRef> layers) const = 0;

  virtual const std::shared_ptr<MemoryBudget>& budget() const = 0;
  virtual Counters counters() const = 0;
};

// Raises the process's limit on open files as far as it may be, and says how many memory files
// that leaves room for, at most limits::kMemoryFilesMax. Call once at start.
uint32_t ReserveMemoryFiles();

}  // namespace kvtier

#endif  // KVTIER_STORE_HOST_MEMORY_H_
