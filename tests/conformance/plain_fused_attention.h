// Fused attention (cuda/fused_attention.h) by plain loops in double over memory that the host can
// address: the twin of a library's, and what stands in for one over the emulated device. Notes
// every call.
#ifndef KVTIER_TESTS_CONFORMANCE_PLAIN_FUSED_ATTENTION_H_
#define KVTIER_TESTS_CONFORMANCE_PLAIN_FUSED_ATTENTION_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "cuda/fused_attention.h"

namespace kvtier {

// What a call computes, from its arguments alone.
void RunPlainFusedAttention(const FusedAttentionParams& params);

// What a PlainFusedAttention did and shall do; the test keeps it.
class FusedAttentionLog {
 public:
  std::vector<FusedAttentionParams> calls() const {
    MutexLock lock(&mutex_);
    return calls_;
  }
  void Add(const FusedAttentionParams& params) {
    MutexLock lock(&mutex_);
    calls_.push_back(params);
  }
  // Set before the backend is used. Null: everything is taken, and nothing fails.
  std::function<bool(const FusedAttentionParams&)> takes;
  std::function<absl::Status(const FusedAttentionParams&)> result;

 private:
  mutable Mutex mutex_;
  std::vector<FusedAttentionParams> calls_ ABSL_GUARDED_BY(mutex_);
};

std::unique_ptr<FusedAttention> MakePlainFusedAttention(std::shared_ptr<FusedAttentionLog> log);

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_PLAIN_FUSED_ATTENTION_H_
