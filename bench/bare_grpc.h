// What gRPC does without kvtier: a server that sends what it is asked for out of one buffer and
// drops what it receives, and a client that copies what comes. The limit of what a service over
// gRPC can reach; its distance from RawTcp is gRPC's.
#ifndef KVTIER_BENCH_BARE_GRPC_H_
#define KVTIER_BENCH_BARE_GRPC_H_

#include <cstdint>
#include <memory>
#include <thread>  // NOLINT(build/c++11)

#include <grpcpp/channel.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/server.h>
#include <grpcpp/support/slice.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/aligned_bytes.h"

namespace kvtier::bench {

// Both ends on loopback, one call at a time. Each end polls on the thread that uses it, through a
// completion queue: of gRPC's ways to wait the one with the fewest changes of threads. The server
// runs on a thread of its own. Not thread-safe.
class BareGrpc {
 public:
  // UNAVAILABLE: no loopback.
  static absl::StatusOr<std::unique_ptr<BareGrpc>> Start();
  ~BareGrpc();
  BareGrpc(const BareGrpc&) = delete;
  BareGrpc& operator=(const BareGrpc&) = delete;

  // Asks with one message of a few bytes; the answer, in messages of at most `message_bytes`, is
  // copied to `destination` until that is full. Seconds.
  absl::StatusOr<double> Receive(uint64_t message_bytes, AlignedBytes& destination);
  // Sends `source` in such messages, which refer to it, and waits for an empty answer. Seconds.
  absl::StatusOr<double> Send(uint64_t message_bytes, const AlignedBytes& source);

 private:
  BareGrpc();
  void Serve();
  bool ServeOne();
  // A call that sends `source` and receives `destination`; null: nothing.
  absl::Status Call(const AlignedBytes* source, uint64_t message_bytes, AlignedBytes* destination);

  const grpc::Slice piece_;  // What the server sends, over and over.
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> server_queue_;
  std::unique_ptr<grpc::Server> server_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericStub> stub_;
  std::thread thread_;
};

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_BARE_GRPC_H_
