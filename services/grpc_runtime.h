// What every program that uses gRPC wants of it, once for the process.
//
// gRPC's own threads live from the first server or channel to the end of the process. Left alone,
// gRPC stops them whenever its last server or channel goes, and waits for them. One of them may
// sleep for up to ten seconds then: a write that found its socket full starts a poller that nobody
// wakes (gRPC 1.51, "backup poller"). UNIX sockets are full after 208 KiB, so that whoever sent
// more than that through one had a fair chance to wait ten seconds at its end. A process that ends
// needs none of this: its threads end with it.
//
// Abseil does not look for deadlocks among gRPC's mutexes. Debian builds it with that check, meant
// for debugging, on: every lock is then entered in a graph that all threads share. Mutexes of ours
// (base/mutex.h) are not abseil's. The switch reaches the whole process: a program that embeds the
// client library has that check on none of its own abseil mutexes either, from its first channel
// on, unless it switches it on again (absl::SetMutexDeadlockDetectionMode).
//
// Thread-safe.
#ifndef KVTIER_SERVICES_GRPC_RUNTIME_H_
#define KVTIER_SERVICES_GRPC_RUNTIME_H_

namespace kvtier {

// Whatever makes servers or channels calls it before.
void KeepGrpcRunning();

}  // namespace kvtier

#endif  // KVTIER_SERVICES_GRPC_RUNTIME_H_
