// One backend, several threads, each with tensors of its own: results are those of the same calls
// made one by one, bit by bit.
#ifndef KVTIER_TESTS_CONFORMANCE_BACKEND_THREADS_H_
#define KVTIER_TESTS_CONFORMANCE_BACKEND_THREADS_H_

#include "compressor/backend.h"

namespace kvtier {

// Products with many terms and few rows, which libraries make in several launches over scratch
// memory, and attention whose launches need different amounts of shared memory.
// Failures are those of the running test.
void ExpectThreadsDoNotMeet(Backend& backend);

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_BACKEND_THREADS_H_
