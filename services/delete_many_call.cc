#include "services/delete_many_call.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

// Objects looked at between two messages: on a disk each costs a synced write.
constexpr size_t kPageObjects = 128;

// One DeleteMany. At any time either a write or a pool job is under way, never both, so the members
// need no lock. Deletes itself.
class DeleteManyCall final : public grpc::ServerWriteReactor<v1::DeleteManyResponse> {
 public:
  DeleteManyCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
                 const v1::DeleteManyRequest& request)
      : environment_(environment), start_(environment.clock().Now()) {
    absl::StatusOr<CallSlots::Slot> slot = environment_.slots().Admit(context);
    absl::Status status = slot.status();
    if (status.ok()) {
      slot_ = *std::move(slot);
      status = Parse(request);
    }
    if (!status.ok()) {
      End(status);
      return;
    }
    environment_.Schedule([this] { RemovePage(); });
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      End(absl::CancelledError("the caller is gone"));
    } else if (is_last_) {
      End(absl::OkStatus());
    } else {
      environment_.Schedule([this] { RemovePage(); });
    }
  }

  void OnDone() override { delete this; }

 private:
  absl::Status Parse(const v1::DeleteManyRequest& request) {
    is_dry_run_ = request.dry_run();
    switch (request.which_case()) {
      case v1::DeleteManyRequest::kModelDigest: {
        if (request.model_digest().size() != Digest::kSize) {
          return absl::InvalidArgumentError(absl::StrCat(
              "model_digest has ", request.model_digest().size(), " bytes, not ", Digest::kSize));
        }
        KVTIER_ASSIGN_OR_RETURN(model_,
                                Digest::FromBytes(absl::string_view(request.model_digest())));
        return absl::OkStatus();
      }
      case v1::DeleteManyRequest::kAll:
        if (request.all()) return absl::OkStatus();
        break;
      case v1::DeleteManyRequest::WHICH_NOT_SET:
        break;
    }
    return absl::InvalidArgumentError("say which objects: model_digest, or all = true");
  }

  // On the pool.
  void RemovePage() {
    const absl::Status removed = [&]() -> absl::Status {
      TieredStore& store = environment_.store();
      const std::vector<ObjectStat> page = store.List(slot_.tenant(), after_, kPageObjects);
      is_last_ = page.size() < kPageObjects;
      for (const ObjectStat& stat : page) {
        after_ = stat.manifest->key;
        if (model_.has_value() && stat.manifest->model_digest != *model_) continue;
        if (!is_dry_run_) {
          const absl::Status status = store.Delete(slot_.tenant(), stat.manifest->key);
          if (absl::IsNotFound(status)) continue;  // Somebody was faster.
          KVTIER_RETURN_IF_ERROR(status);
          environment_.metrics().store_bulk_deleted_objects.Increment();
        }
        response_.set_objects(response_.objects() + 1);
        response_.set_bytes(response_.bytes() + stat.manifest->PrefixBytes(stat.resident_bands));
      }
      return absl::OkStatus();
    }();
    if (!removed.ok()) {
      End(WithRetryIfFull(absl::Status(
          removed.code(),
          absl::StrCat("after ", response_.objects(), " objects: ", removed.message()))));
      return;
    }
    StartWrite(&response_);
  }

  // Counts before the caller hears of the end.
  void End(const absl::Status& status) {
    environment_.Count("DeleteMany", status, start_);
    Finish(ToGrpcStatus(status));
  }

  CallEnvironment& environment_;
  const absl::Time start_;
  CallSlots::Slot slot_;
  std::optional<Digest> model_;  // Nothing: every model.
  bool is_dry_run_ = false;
  std::optional<Key> after_;  // The last object that was looked at.
  bool is_last_ = false;
  v1::DeleteManyResponse response_;  // Totals so far; the one being written.
};

}  // namespace

grpc::ServerWriteReactor<v1::DeleteManyResponse>* StartDeleteManyCall(
    CallEnvironment& environment, const grpc::ServerContextBase& context,
    const v1::DeleteManyRequest& request) {
  return new DeleteManyCall(environment, context, request);
}

}  // namespace kvtier
