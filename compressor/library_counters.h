// What the libraries of a backend did that somebody may want to know while it runs
// (Backend::library_counters): plain counters, so that who shows them depends on no backend.
#ifndef KVTIER_COMPRESSOR_LIBRARY_COUNTERS_H_
#define KVTIER_COMPRESSOR_LIBRARY_COUNTERS_H_

#include <atomic>
#include <cstdint>

namespace kvtier {

// They only grow. Any thread reads them at any time.
struct LibraryCounters {
  std::atomic<uint64_t> attention_calls{0};      // Computed by the library.
  std::atomic<uint64_t> attention_fallbacks{0};  // It had no kernel after all: slower ones ran.
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_LIBRARY_COUNTERS_H_
