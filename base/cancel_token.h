// Asks long work to stop. The work polls; nobody is interrupted.
#ifndef KVTIER_BASE_CANCEL_TOKEN_H_
#define KVTIER_BASE_CANCEL_TOKEN_H_

#include <atomic>

#include "absl/status/status.h"

namespace kvtier {

// Thread-safe. Cancelling is permanent.
class CancelToken {
 public:
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // OK, or CANCELLED.
  absl::Status Check() const {
    return cancelled() ? absl::CancelledError("cancelled by the caller") : absl::OkStatus();
  }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace kvtier

#endif  // KVTIER_BASE_CANCEL_TOKEN_H_
