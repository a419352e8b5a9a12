// Every bound of the system, in one table, each with its reason. What a peer must know is also in
// the reply of StoreService.Stats. Input above a bound is refused before memory is taken for it.
// A bound of a format or a protocol is raised together with docs/object_format.md or
// docs/protocol.md; a bound of a queue or a pool is a default that a flag may lower.
#ifndef KVTIER_BASE_LIMITS_H_
#define KVTIER_BASE_LIMITS_H_

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace kvtier::limits {

inline constexpr uint64_t kKiB = uint64_t{1} << 10;
inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kGiB = uint64_t{1} << 30;

// --- Model geometry: what a manifest or a config.json may claim
// -----------------------------------

// Longest context windows sold today; positions stay far inside 32 bits.
inline constexpr uint32_t kContextTokensMax = 1u << 20;
// The deepest open model has 126 layers.
inline constexpr uint32_t kLayersMax = 512;
// MHA models of the 70B class have 64; MLA counts as one.
inline constexpr uint32_t kKvHeadsMax = 256;
// Query heads; GQA groups divide it.
inline constexpr uint32_t kQueryHeadsMax = 1024;
// 256 is in use; MLA rows have 576 elements in one head and are not supported yet.
inline constexpr uint32_t kHeadDimMax = 512;
// 152k and 256k are in use.
inline constexpr uint32_t kVocabularyMax = 1u << 20;
// A system prompt is protected whole (band 0), so it must stay small beside the context.
inline constexpr uint32_t kSystemTokensMax = 65536;

// --- Object format
// --------------------------------------------------------------------------------

// Six by default. Each band costs a segment per layer, so more of them means small reads.
inline constexpr uint32_t kBandsMax = 16;
// Every bound above at once, at 16 bytes per (band, layer, head), is 32 MiB; 80 layers of 8 heads
// in six bands need 60 KiB. Held in memory for every indexed object. Larger than a control message:
// a reply carries a manifest in pieces, or refuses one that does not fit.
inline constexpr uint64_t kManifestBytesMax = 64 * kMiB;
// One layer of a band: 1M tokens x 8 heads x 128 x 2 x fp16 is 4 GiB.
inline constexpr uint64_t kSegmentBytesMax = 8 * kGiB;
// Sum over an object's segments; 1M tokens of a 70B model is 320 GiB dense.
inline constexpr uint64_t kObjectBytesMax = 1024 * kGiB;
// Re-banding takes up to 9 bytes per pair: 18 GiB. 1M tokens of a 70B model: 671 million pairs.
inline constexpr uint64_t kRebandPairsMax = uint64_t{1} << 31;
// A canonical descriptor is its token ids (4 bytes each) plus a page of typed fields.
inline constexpr uint64_t kKeyDescriptorBytesMax =
    4 * (uint64_t{kContextTokensMax} + kSystemTokensMax) + 64 * kKiB;
// Names inside manifests and descriptors (recipe, model, codec).
inline constexpr uint32_t kNameBytesMax = 256;

// --- Checkpoints: files that a user downloaded --------------------------------------------------

// The bound of the safetensors library itself.
inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;
// Mixture-of-experts checkpoints have tens of thousands.
inline constexpr uint32_t kCheckpointTensorsMax = 100'000;
inline constexpr uint32_t kCheckpointShardsMax = 4096;
inline constexpr uint32_t kTensorRankMax = 8;
inline constexpr uint64_t kConfigJsonBytesMax = 1 * kMiB;
// Nesting of a JSON document: its parser recurses.
inline constexpr uint32_t kJsonDepthMax = 64;

// --- Wire
// -----------------------------------------------------------------------------------------

// One frame of payload: large enough that per-message cost vanishes, small enough that a slow
// reader holds little.
inline constexpr uint64_t kFrameBytesMax = 1 * kMiB;
// A fetch of so much payload at most may be answered in one message, copied there beside its
// manifest: that costs less than messages of its own.
inline constexpr uint64_t kSmallFetchBytesMax = 32 * kKiB;
// Any message that is not a frame: a manifest plus a million token ids fit.
inline constexpr uint64_t kControlMessageBytesMax = 16 * kMiB;
inline constexpr uint32_t kTenantBytesMax = 128;
// Prompts in one Lookup, and token blocks of one of them: the longest context in blocks of 64.
inline constexpr uint32_t kLookupBatchMax = 256;
inline constexpr uint32_t kLookupBlocksMax = kContextTokensMax / 64;
// Stored contexts that one prompt's answer is chosen from. More can only match when that many
// stored ones are prefixes of each other, or differ behind the same last full block.
inline constexpr uint32_t kLookupCandidatesMax = 64;
// Objects in one page of List.
inline constexpr uint32_t kListPageMax = 1000;
// One opaque page: engines' blocks are 4 KiB to a few MiB.
inline constexpr uint64_t kPageBytesMax = 16 * kMiB;
// Pages of one batch, and their bytes together: below what a message may have, and what one caller
// may have us hold.
inline constexpr uint32_t kPageBatchMax = 1024;
inline constexpr uint64_t kPageBatchBytesMax = 64 * kMiB;
// Events kept for replay by a Watch that reconnects; older ones cost a snapshot.
inline constexpr uint32_t kWatchReplayEventsMax = 65536;
inline constexpr uint32_t kWatchersMax = 256;
// Of one tenant, so that it cannot keep all others out.
inline constexpr uint32_t kWatchersPerTenantMax = 64;
// Tenants with a quota of their own: each is a label value of a metric.
inline constexpr uint32_t kTenantQuotasMax = 256;
// The longest time to live that can be asked for; longer: none.
inline constexpr absl::Duration kTtlMax = absl::Hours(24 * 365 * 100);
// How often expired objects are looked for. They are misses before that; it is their bytes that
// wait.
inline constexpr absl::Duration kExpirySweepInterval = absl::Seconds(1);

// --- Store
// ----------------------------------------------------------------------------------------

// Uploads open at once; each holds a segment's worth of buffers.
inline constexpr uint32_t kUploadsMax = 64;
// An upload that nobody continues is dropped after this.
inline constexpr absl::Duration kUploadIdleMax = absl::Minutes(10);
// Files that hold bands in host memory: one descriptor each. What the process may open is often
// less (RLIMIT_NOFILE).
inline constexpr uint32_t kMemoryFilesMax = 65536;
// Leases held at once, over all tenants: each pins memory.
inline constexpr uint32_t kLeasesMax = 4096;
// Calls at once, Lease streams at once, streams of one connection, threads of calls that wait; the
// network is full long before.
inline constexpr uint32_t kFetchesMax = 1024;
// Objects in the index of one node: about 2 KiB each beside their manifests.
inline constexpr uint32_t kObjectsMax = 1u << 20;

// --- Compressor and worker
// ------------------------------------------------------------------------

// Jobs that wait: each keeps its token ids, and a caller that waits longer is better refused.
inline constexpr uint32_t kCompressQueueMax = 16;
// Callers that share one running job of a key.
inline constexpr uint32_t kCompressWaitersPerKeyMax = 256;
inline constexpr uint32_t kAttachedObjectsMax = 256;
// Questions that decode together over one object.
inline constexpr uint32_t kConcurrentAsksPerObjectMax = 64;
inline constexpr uint32_t kAnswerTokensMax = 4096;
inline constexpr uint32_t kStopIdsMax = 16;

// --- Link
// -----------------------------------------------------------------------------------------

// Workers of one tensor-parallel group; eight are usual.
inline constexpr uint32_t kLinkRanksMax = 64;
// Groups of one sender: each has a communicator with buffers on the device. Idle ones go first.
inline constexpr uint32_t kLinkGroupsMax = 64;
// Calls at once; each holds a thread.
inline constexpr uint32_t kLinkCallsMax = 256;
// A call must end by itself sometime: nobody else frees what it holds.
inline constexpr absl::Duration kLinkCallMax = absl::Minutes(10);
// How soon a call that waits notices that its caller has gone: gRPC's synchronous calls can only be
// asked. 256 of them ask 2560 times a second, which is nothing.
inline constexpr absl::Duration kLinkCancelPoll = absl::Milliseconds(100);
// NCCL's has 128.
inline constexpr uint64_t kCommunicatorIdBytesMax = 4096;

// --- Retries
// --------------------------------------------------------------------------------------

inline constexpr absl::Duration kRetryBackoffMax = absl::Seconds(10);

}  // namespace kvtier::limits

#endif  // KVTIER_BASE_LIMITS_H_
