// The receiving side of one Put: collects an object's segments, in any number of pieces, and
// verifies them while they are copied: each head is judged as soon as its last byte is there.
//
// Offsets count encoded bytes of all segments laid end to end, band by band and layer by layer
// inside a band ("object offset"). Bytes arrive in ascending order; bytes before uploaded_bytes()
// are repeats of a resumed stream and are skipped; a gap is an error. Bytes are written where they
// stay: into the band memory that host memory takes over when the upload is sealed.
#ifndef KVTIER_STORE_UPLOAD_H_
#define KVTIER_STORE_UPLOAD_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "kvcache/manifest.h"
#include "kvcache/segment_ref.h"
#include "store/host_memory.h"

namespace kvtier {

// Thread-safe; concurrent appends of one upload are serialised (the second stream of a client that
// lost its first one may overlap it).
class Upload {
 public:
  // Takes memory for the whole object at once, so that an upload that has begun can end.
  // RESOURCE_EXHAUSTED (of the budget, named) when it cannot be had.
  static absl::StatusOr<std::shared_ptr<Upload>> Create(std::shared_ptr<const Manifest> manifest,
                                                        HostMemory& memory);
  // What Create charges.
  static uint64_t ChargeOf(const Manifest& manifest, const HostMemory& memory);

  const std::shared_ptr<const Manifest>& manifest() const { return manifest_; }
  // Never decreases. Does not wait for an append that is running.
  uint64_t uploaded_bytes() const { return uploaded_bytes_.load(std::memory_order_acquire); }
  // INVALID_ARGUMENT: a gap, past the end, or a segment of which a head's CRC32C does not match the
  // manifest (named; the upload stays where that segment began, so it can be sent again),
  // or whose content is none (CheckSegmentContent; named).
  absl::Status Append(uint64_t object_offset, std::span<const std::byte> bytes);
  bool complete() const;
  // REQUIRES: complete(). [bands][layers], band-major. May be called again.
  std::vector<SegmentRef> segments() const;

 private:
  explicit Upload(std::shared_ptr<const Manifest> manifest) : manifest_(std::move(manifest)) {}
  std::shared_ptr<const Manifest> manifest_;
  std::atomic<uint64_t> uploaded_bytes_{0};  // Whole and verified segments; set under mutex_.
  mutable Mutex mutex_;
  struct State;
  std::shared_ptr<State> state_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_STORE_UPLOAD_H_
