// The weight files of a checkpoint folder, as one set of named tensors.
//   KVTIER_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(folder));
//   KVTIER_ASSIGN_OR_RETURN(auto norm, checkpoint.Take("model.norm.weight", {4096}));
//   KVTIER_RETURN_IF_ERROR(checkpoint.ExpectNoneLeft({}));
#ifndef KVTIER_COMPRESSOR_CHECKPOINT_H_
#define KVTIER_COMPRESSOR_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compressor/safetensors.h"
#include "kvcache/geometry.h"

namespace kvtier {

// What model.safetensors.index.json says: the file of each tensor.
struct CheckpointIndex {
  std::map<std::string, std::string> files;  // Tensor name to file name, in the same folder.

  // INVALID_ARGUMENT naming the fault: not JSON, no weight_map, a file name that is none in the
  // index's own folder or does not end in .safetensors, more than limits::kCheckpointShardsMax
  // files.
  static absl::StatusOr<CheckpointIndex> Parse(absl::string_view json);
};

// Move-only. Tensors point into mapped files, which live as long as the checkpoint. Not
// thread-safe.
class Checkpoint {
 public:
  // model.safetensors; without it the files of model.safetensors.index.json; without that every
  // *.safetensors, in order of their names.
  // NOT_FOUND: no such folder or no weight file, or one that the index names (named).
  // INVALID_ARGUMENT: as the parsers say; a tensor in two files, or not where the index says.
  static absl::StatusOr<Checkpoint> Open(const std::string& folder);

  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  bool Has(const std::string& name) const { return tensors_.count(name) > 0; }

  struct Taken {
    std::span<const std::byte> bytes;
    DType dtype;
  };
  // INVALID_ARGUMENT naming the tensor: missing, of another shape (both are named), with a NaN or
  // an infinity (its index is named). UNIMPLEMENTED: a dtype that is not built. Reads the whole
  // tensor.
  absl::StatusOr<Taken> Take(const std::string& name, const std::vector<int64_t>& shape);

  // Gives back the memory of a tensor that has been copied, as far as it is not shared with others.
  void Release(const Taken& taken) const;

  // INVALID_ARGUMENT naming a tensor that nobody took, unless its name begins with one of
  // `ignored`.
  absl::Status ExpectNoneLeft(std::span<const absl::string_view> ignored) const;

 private:
  Checkpoint() = default;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsEntry*> tensors_;
  std::set<std::string> taken_;
};

// Index of the first element that is NaN or infinite, or -1. `bytes` need not be aligned.
int64_t FindNotFinite(std::span<const std::byte> bytes, DType dtype);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_CHECKPOINT_H_
