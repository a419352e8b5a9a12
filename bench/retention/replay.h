// Replays a trace against a cache of so many bytes and counts what it gives back. Nothing but sizes
// is stored.
//
// What every scheme of objects has in common: each request asks for the longest stored context that
// its prompt begins with, and then its own prompt, cut at its last full block, is stored unless it
// is there already. An object holds all of its prompt: what two prompts share is stored twice.
// Requests take no time, and a new object is computed from the whole prompt whatever was hit.
#ifndef KVTIER_BENCH_RETENTION_REPLAY_H_
#define KVTIER_BENCH_RETENTION_REPLAY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/retention/quality_curve.h"
#include "bench/retention/request_trace.h"

namespace kvtier::bench {

// Llama-3.1-8B in bf16: 32 layers, 8 KV heads, 128 wide.
inline constexpr uint64_t kPairsPerToken = 32 * 8;
// A dense cache; an object has a position (4 bytes) and a score (2) per pair more.
inline constexpr uint64_t kDenseBytesPerToken = kPairsPerToken * 2 * 128 * 2;
inline constexpr uint64_t kObjectBytesPerToken = kDenseBytesPerToken + kPairsPerToken * 6;

struct ReplayResult {
  // Blocks of prompts that were found, of all that were asked for (the partial ones too).
  double hits = 0;
  // The same, each hit counted with the quality of the ratio at which it was served.
  double weighted = 0;
  // Written into the cache and read from it.
  uint64_t bytes_moved = 0;
};

struct ObjectScheme {
  // Kept fraction up to each band's end, rising. One edge: objects of one ratio that are there or
  // not.
  std::vector<double> edges;
  std::string policy;  // As MakeEvictionPolicy.
};

// Objects of `scheme` in `capacity_bytes`. A band's score mass is what `curve` rises over it, a
// miss costs the tokens of the prompt; of several stored prefixes the one with the most
// blocks x quality serves. An object that finds no room even alone is not stored.
// INVALID_ARGUMENT: no such policy.
absl::StatusOr<ReplayResult> ReplayObjects(const RequestTrace& trace, const ObjectScheme& scheme,
                                           const QualityCurve& curve, uint64_t capacity_bytes);

// What other cache tiers do: dense blocks, each stored once however many prompts share it, least
// recently used ones evicted, from the end of a prompt to its beginning.
ReplayResult ReplayDenseBlocks(const RequestTrace& trace, uint64_t capacity_bytes);

// Bytes of every object of the trace at ratio 1: with so many nothing is evicted.
uint64_t BytesOfAllObjects(const RequestTrace& trace);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_RETENTION_REPLAY_H_
