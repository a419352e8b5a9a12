// A Put that says no more than its header: a call that runs, and an upload that is open, until it
// is cancelled.
#ifndef KVTIER_TESTS_TESTING_OPEN_PUT_H_
#define KVTIER_TESTS_TESTING_OPEN_PUT_H_

#include <memory>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "kvcache/compressed_object.h"
#include "kvcache/manifest.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "store/tiered_store.h"
#include "tests/testing/eventually.h"

namespace kvtier {

class OpenPut {
 public:
  // Of the tenant that calls name by default.
  OpenPut(v1::StoreService::Stub& stub, const CompressedObject& object)
      : upload_(object.manifest->upload_id), writer_(stub.Put(&context_, &response_)) {
    v1::PutRequest header;
    header.mutable_header()->set_manifest(EncodeManifest(*object.manifest));
    header.mutable_header()->set_durability(v1::DURABILITY_HOST);
    writer_->Write(header);
  }
  ~OpenPut() {
    if (writer_ == nullptr) return;
    context_.TryCancel();
    writer_->Finish();
  }
  OpenPut(const OpenPut&) = delete;
  OpenPut& operator=(const OpenPut&) = delete;

  // Whether it has begun. Asked of the store itself: a call would take a place of its own.
  bool HasBegun(TieredStore& store) const {
    return Eventually([&] { return store.UploadedBytes(TenantId(), upload_).ok(); });
  }
  // What the server ends it with. Once.
  grpc::Status Finish() {
    const std::unique_ptr<grpc::ClientWriter<v1::PutRequest>> writer = std::move(writer_);
    return writer->Finish();
  }

 private:
  const UploadId upload_;
  grpc::ClientContext context_;
  v1::PutResponse response_;
  std::unique_ptr<grpc::ClientWriter<v1::PutRequest>> writer_;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_OPEN_PUT_H_
