// What a disk holds, and what of it a loss of power leaves. Less than most file systems do:
//
//   - Bytes of a file that were written since its last fsync may be lost, each sector for itself.
//   - Names that were made, moved or removed since the last fsync of their folder may be as before,
//     the latest ones first; fsync of a file does not save its name, and folders know nothing of
//     each other. Inside a folder the order holds, as in every journal: RocksDB relies on it (it
//     makes MANIFEST-n and renames CURRENT to name it, and then syncs their folder once).
//   - A folder is a name in its parent. When it is lost, so is all that is in it.
//
// A value: copies are independent. Not thread-safe; tests/fault/store/simulated_disk.h is.
#ifndef KVTIER_TESTS_FAULT_STORE_DISK_STATE_H_
#define KVTIER_TESTS_FAULT_STORE_DISK_STATE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvtier {

using DiskFileId = uint64_t;  // Of the bytes; a file may have several names, or none any more.

// One change of a disk. Paths are absolute, without a trailing slash.
struct DiskOp {
  enum class Kind {
    kCreate,      // path names the new, empty `file`; a file of that name loses it
    kWrite,       // `data` at `offset` of `file`
    kTruncate,    // `file` to `offset` bytes
    kSyncFile,    // `file`
    kLink,        // `target` names the file of `path` too
    kRename,      // inside one folder, over whatever `target` named
    kRemove,      // the name `path`
    kMakeFolder,  // `path`
    kSyncFolder,  // the names in `path`
  };
  Kind kind;
  std::string path = {};
  std::string target = {};
  DiskFileId file = 0;
  uint64_t offset = 0;
  std::shared_ptr<const std::string> data = {};
};

// "create /s/db/000008.sst", for messages.
std::string ToString(const DiskOp& op);

// The folder that a path lies in.
std::string ParentOf(absl::string_view path);

// What is left of changes that no fsync covered. kRandom: of the bytes any sectors, of the names in
// each folder a number of the first ones.
enum class Survival { kNone, kAll, kRandom };

class DiskState {
 public:
  // A disk with one folder, `root`.
  explicit DiskState(std::string root);

  // REQUIRES: what the operation names is there (simulated_disk.cc has checked).
  void Apply(const DiskOp& op);

  // The disk after its power went and came back. All of it is durable then.
  DiskState AfterPowerLoss(Survival survival, std::mt19937_64& random) const;

  // --- What a process sees now.
  const std::map<std::string, DiskFileId>& names() const { return seen_.files; }  // By path.
  bool HasFolder(const std::string& path) const { return seen_.folders.contains(path); }
  // Names of files and folders in `folder`.
  std::vector<std::string> List(const std::string& folder) const;
  // REQUIRES: the file exists, or did.
  const std::string& Content(DiskFileId file) const { return files_.at(file).content; }
  DiskFileId next_file() const { return next_file_; }

 private:
  static constexpr uint64_t kSectorBytes = 512;

  struct File {
    std::string content;           // What a process reads.
    std::string synced;            // As of the last fsync.
    std::vector<DiskOp> unsynced;  // kWrite and kTruncate since then, in order.
  };
  struct Tree {
    std::map<std::string, DiskFileId> files;
    std::set<std::string> folders;
    void Apply(const DiskOp& op);
  };

  static void ApplyToContent(const DiskOp& op, std::string* content);
  static std::string Survivor(const File& file, Survival survival, std::mt19937_64& random);

  const std::string root_;
  Tree seen_;
  Tree synced_;
  std::vector<DiskOp> unsynced_;  // Changes of names, in order.
  std::map<DiskFileId, File> files_;
  DiskFileId next_file_ = 1;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_FAULT_STORE_DISK_STATE_H_
