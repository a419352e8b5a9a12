// What happened on the links of this process, both ends: exported as kvtier_link_*
// (link_metrics.h).
#ifndef KVTIER_SERVICES_LINK_LINK_COUNTERS_H_
#define KVTIER_SERVICES_LINK_LINK_COUNTERS_H_

#include <atomic>
#include <cstdint>

namespace kvtier {

// Thread-safe. Transfers are counted per rank.
struct LinkCounters {
  // Sending end.
  std::atomic<uint64_t> sent{0};
  std::atomic<uint64_t> sent_bytes{0};
  std::atomic<uint64_t> send_misses{0};  // Not in device memory, or another upload.
  // Begun and not sent. Calls refused before that, for any other reason, are in neither.
  std::atomic<uint64_t> send_failures{0};
  // Receiving end. Every fetch is one of received, fallback_misses, fallback_failures and failures.
  std::atomic<uint64_t> received{0};
  std::atomic<uint64_t> received_bytes{0};
  std::atomic<uint64_t> fallback_misses{0};  // Sender or store has not got it: the store answered.
  std::atomic<uint64_t> fallback_failures{
      0};                             // The link failed: the store was asked (for the rest).
  std::atomic<uint64_t> failures{0};  // Ended without asking the store for bytes.
  // Either.
  std::atomic<uint64_t> communicators{0};  // Made.
  // Of them, thrown away after a failure, or because a worker came with another member id.
  std::atomic<uint64_t> communicators_dropped{0};
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LINK_LINK_COUNTERS_H_
