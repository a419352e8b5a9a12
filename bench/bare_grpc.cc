#include "bench/bare_grpc.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "bench/timing.h"
#include "services/client.h"

namespace kvtier::bench {
namespace {

// What a client asks for.
struct Ask {
  uint64_t bytes = 0;
  uint64_t message_bytes = 0;
};

grpc::ByteBuffer BufferOf(const grpc::Slice& slice) { return grpc::ByteBuffer(&slice, 1); }

// The one operation that runs has ended. False: the queue is closing, or the operation failed.
bool Await(grpc::CompletionQueue& queue) {
  void* tag = nullptr;
  bool is_ok = false;
  return queue.Next(&tag, &is_ok) && is_ok;
}

std::vector<grpc::Slice> SlicesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) slices.clear();
  return slices;
}

}  // namespace

BareGrpc::BareGrpc() : piece_(std::string(limits::kFrameBytesMax, 'k')) {}

absl::StatusOr<std::unique_ptr<BareGrpc>> BareGrpc::Start() {
  std::unique_ptr<BareGrpc> bare(new BareGrpc());
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(-1);
  builder.RegisterAsyncGenericService(&bare->service_);
  bare->server_queue_ = builder.AddCompletionQueue();
  bare->server_ = builder.BuildAndStart();
  if (bare->server_ == nullptr || port == 0) {
    return absl::UnavailableError("a gRPC server on loopback cannot start");
  }
  bare->thread_ = std::thread([raw = bare.get()] { raw->Serve(); });
  bare->stub_ = std::make_unique<grpc::GenericStub>(MakeChannel(absl::StrCat("127.0.0.1:", port)));
  return bare;
}

BareGrpc::~BareGrpc() {
  stub_.reset();
  if (server_ != nullptr) {
    server_->Shutdown();
    server_queue_->Shutdown();
  }
  if (thread_.joinable()) thread_.join();
  queue_.Shutdown();
}

void BareGrpc::Serve() {
  while (ServeOne()) {
  }
  void* tag = nullptr;
  bool is_ok = false;
  while (server_queue_->Next(&tag, &is_ok)) {
  }
}

// False: the server ends.
bool BareGrpc::ServeOne() {
  grpc::GenericServerContext context;
  grpc::GenericServerAsyncReaderWriter stream(&context);
  service_.RequestCall(&context, &stream, server_queue_.get(), server_queue_.get(), nullptr);
  if (!Await(*server_queue_)) return false;
  // The first message asks; the rest is dropped.
  Ask ask;
  bool has_asked = false;
  for (;;) {
    grpc::ByteBuffer message;
    stream.Read(&message, nullptr);
    if (!Await(*server_queue_)) break;
    if (has_asked) continue;
    has_asked = true;
    std::string asked;
    for (const grpc::Slice& slice : SlicesOf(message)) {
      asked.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    if (asked.size() == sizeof(ask)) std::memcpy(&ask, asked.data(), sizeof(ask));
  }
  while (ask.bytes > 0) {
    const uint64_t bytes = std::min({ask.bytes, ask.message_bytes, uint64_t{piece_.size()}});
    stream.Write(BufferOf(piece_.sub(0, bytes)), nullptr);
    if (!Await(*server_queue_)) break;
    ask.bytes -= bytes;
  }
  stream.Finish(grpc::Status::OK, nullptr);
  Await(*server_queue_);
  return true;
}

absl::Status BareGrpc::Call(const AlignedBytes* source, uint64_t message_bytes,
                            AlignedBytes* destination) {
  grpc::ClientContext context;
  const auto stream = stub_->PrepareCall(&context, "/kvtier.bench.Bare/Call", &queue_);
  stream->StartCall(nullptr);
  bool is_ok = Await(queue_);
  const Ask ask = {.bytes = destination == nullptr ? 0 : destination->size(),
                   .message_bytes = message_bytes};
  stream->Write(BufferOf(grpc::Slice(&ask, sizeof(ask))), nullptr);
  is_ok = Await(queue_) && is_ok;
  for (uint64_t sent = 0; is_ok && source != nullptr && sent < source->size();) {
    const uint64_t bytes = std::min(message_bytes, source->size() - sent);
    stream->Write(BufferOf(grpc::Slice(source->data() + sent, bytes, grpc::Slice::STATIC_SLICE)),
                  nullptr);
    is_ok = Await(queue_);
    sent += bytes;
  }
  stream->WritesDone(nullptr);
  Await(queue_);
  uint64_t received = 0;
  for (;;) {
    grpc::ByteBuffer message;
    stream->Read(&message, nullptr);
    if (!Await(queue_)) break;
    for (const grpc::Slice& slice : SlicesOf(message)) {
      if (destination == nullptr || slice.size() > destination->size() - received) break;
      std::memcpy(destination->data() + received, slice.begin(), slice.size());
      received += slice.size();
    }
  }
  grpc::Status status;
  stream->Finish(&status, nullptr);
  Await(queue_);
  if (!status.ok() || received != ask.bytes) {
    return absl::InternalError(absl::StrCat("gRPC alone: ", received, " of ", ask.bytes, " bytes, ",
                                            status.error_message()));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> BareGrpc::Receive(uint64_t message_bytes, AlignedBytes& destination) {
  return Seconds([&] { return Call(nullptr, message_bytes, &destination); });
}

absl::StatusOr<double> BareGrpc::Send(uint64_t message_bytes, const AlignedBytes& source) {
  return Seconds([&] { return Call(&source, message_bytes, nullptr); });
}

}  // namespace kvtier::bench
