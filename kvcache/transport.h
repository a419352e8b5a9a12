// Moves segments of one sealed object from where they live into the caller's memory. Implemented
// by a gRPC stream (services/client.h); shared memory and NCCL are further implementations.
// One conformance suite (tests/conformance) runs against all of them.
#ifndef KVTIER_KVCACHE_TRANSPORT_H_
#define KVTIER_KVCACHE_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvcache/bands.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "kvcache/segment_ref.h"

namespace kvtier {

// What to move. Ranges are checked against the manifest: OUT_OF_RANGE past its end.
struct FetchRequest {
  TenantId tenant;
  Key key;
  std::optional<UploadId> upload_id;  // Pins one computation; another answers ABORTED.
  Ratio ratio;                        // Smallest resident edge >= this ...
  Ratio min_ratio;                    // ... else the highest resident edge >= this, else NOT_FOUND.
  std::optional<uint64_t>
      bytes_max;                     // Instead of the ratio: the longest prefix of bands that fits.
  std::optional<LayerRange> layers;  // All when absent.
  std::optional<HeadRange> heads;    // All when absent.
  // What the caller expects to receive, in bytes, if it knows (a Lookup or a List says so). Only a
  // hint: a transport may take a shorter way for little, and a longer one when that was wrong.
  std::optional<uint64_t> expected_bytes;
};

// Number of bands that serve `request` of an object with `resident_bands` bands resident: by byte
// budget if there is one, else by ratio as bands.h says. The one place where store and clients
// agree.
//   NOT_FOUND         fewer bands than min_ratio asks for, or not even band 0 fits the budget
//   INVALID_ARGUMENT  min_ratio above ratio (without a byte budget)
absl::StatusOr<uint32_t> ChooseBands(const Manifest& manifest, uint32_t resident_bands,
                                     const FetchRequest& request);

// Receives what a fetch brings, on one thread, in the order layer by layer, bands inside a layer.
// An error from any method ends the fetch with that error.
class SegmentSink {
 public:
  virtual ~SegmentSink() = default;
  // Once, first. `band_count` bands will follow for each layer.
  virtual absl::Status OnManifest(std::shared_ptr<const Manifest> manifest,
                                  uint32_t band_count) = 0;
  // A whole segment (of the asked heads), every head's CRC32C verified.
  virtual absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) = 0;
};

// Thread-safe.
class Transport {
 public:
  virtual ~Transport() = default;
  // Returns after the last segment. On any error the caller discards everything it received.
  //   NOT_FOUND          no such object, or fewer bands than min_ratio asks for: a miss
  //   ABORTED            another upload than the pinned one is stored now
  //   OUT_OF_RANGE       layer or head range past the end
  //   DATA_LOSS          bytes failed their checksum on the way or at rest
  //   UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED as usual
  virtual absl::Status Fetch(const FetchRequest& request, absl::Time deadline,
                             SegmentSink& sink) = 0;
};

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_TRANSPORT_H_
