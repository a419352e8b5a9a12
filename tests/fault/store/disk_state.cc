#include "tests/fault/store/disk_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/log.h"

namespace kvtier {
namespace {

using Kind = DiskOp::Kind;

bool Survives(Survival survival, std::mt19937_64& random) {
  return survival == Survival::kAll || (survival == Survival::kRandom && random() % 2 == 0);
}

// The folder whose names a change is about.
std::string FolderOf(const DiskOp& op) {
  return ParentOf(op.kind == Kind::kLink ? op.target : op.path);
}

}  // namespace

std::string ParentOf(absl::string_view path) {
  return std::string(path.substr(0, path.find_last_of('/')));
}

std::string ToString(const DiskOp& op) {
  switch (op.kind) {
    case Kind::kCreate:
      return absl::StrCat("create ", op.path);
    case Kind::kWrite:
      return absl::StrCat("write ", op.data->size(), " bytes at ", op.offset, " of ", op.path);
    case Kind::kTruncate:
      return absl::StrCat("truncate to ", op.offset, " ", op.path);
    case Kind::kSyncFile:
      return absl::StrCat("fsync ", op.path);
    case Kind::kLink:
      return absl::StrCat("link ", op.path, " as ", op.target);
    case Kind::kRename:
      return absl::StrCat("rename ", op.path, " to ", op.target);
    case Kind::kRemove:
      return absl::StrCat("remove ", op.path);
    case Kind::kMakeFolder:
      return absl::StrCat("mkdir ", op.path);
    case Kind::kSyncFolder:
      return absl::StrCat("fsync folder ", op.path);
  }
  return "?";
}

DiskState::DiskState(std::string root) : root_(std::move(root)) {
  seen_.folders.insert(root_);
  synced_ = seen_;
}

void DiskState::Tree::Apply(const DiskOp& op) {
  switch (op.kind) {
    case Kind::kCreate:
      files[op.path] = op.file;
      break;
    case Kind::kLink:
      files[op.target] = op.file;
      break;
    case Kind::kRename:
      files.erase(op.path);
      files[op.target] = op.file;
      break;
    case Kind::kRemove:
      files.erase(op.path);
      break;
    case Kind::kMakeFolder:
      folders.insert(op.path);
      break;
    default:
      KVTIER_LOG(FATAL) << "not a change of names: " << ToString(op);
  }
}

void DiskState::ApplyToContent(const DiskOp& op, std::string* content) {
  if (op.kind == Kind::kTruncate) {
    content->resize(op.offset);
    return;
  }
  if (content->size() < op.offset + op.data->size()) {
    content->resize(op.offset + op.data->size());
  }
  std::copy(op.data->begin(), op.data->end(), content->begin() + static_cast<ptrdiff_t>(op.offset));
}

void DiskState::Apply(const DiskOp& op) {
  switch (op.kind) {
    case Kind::kWrite:
    case Kind::kTruncate: {
      File& file = files_.at(op.file);
      ApplyToContent(op, &file.content);
      file.unsynced.push_back(op);
      break;
    }
    case Kind::kSyncFile: {
      File& file = files_.at(op.file);
      file.synced = file.content;
      file.unsynced.clear();
      break;
    }
    case Kind::kSyncFolder:
      std::erase_if(unsynced_, [&](const DiskOp& change) {
        if (FolderOf(change) != op.path) return false;
        synced_.Apply(change);
        return true;
      });
      break;
    case Kind::kCreate:
      files_[op.file];
      next_file_ = std::max(next_file_, op.file + 1);
      [[fallthrough]];
    default:
      seen_.Apply(op);
      unsynced_.push_back(op);
  }
}

std::string DiskState::Survivor(const File& file, Survival survival, std::mt19937_64& random) {
  if (survival == Survival::kAll) return file.content;
  std::string content = file.synced;
  if (survival == Survival::kNone) return content;
  for (const DiskOp& op : file.unsynced) {
    if (op.kind == Kind::kTruncate) {
      if (Survives(survival, random)) ApplyToContent(op, &content);
      continue;
    }
    const uint64_t end = op.offset + op.data->size();
    for (uint64_t at = op.offset; at < end;) {
      const uint64_t next = std::min(end, (at / kSectorBytes + 1) * kSectorBytes);
      if (Survives(survival, random)) {
        DiskOp sector = op;
        sector.offset = at;
        sector.data =
            std::make_shared<const std::string>(op.data->substr(at - op.offset, next - at));
        ApplyToContent(sector, &content);  // What is before it and did not survive reads as zeros.
      }
      at = next;
    }
  }
  return content;
}

DiskState DiskState::AfterPowerLoss(Survival survival, std::mt19937_64& random) const {
  DiskState after(root_);
  after.seen_ = synced_;
  std::map<std::string, uint64_t> left;  // Changes that survive, by folder.
  for (const DiskOp& change : unsynced_) ++left[FolderOf(change)];
  for (auto& [folder, count] : left) {
    if (survival == Survival::kNone) count = 0;
    if (survival == Survival::kRandom) count = random() % (count + 1);
  }
  for (const DiskOp& change : unsynced_) {
    uint64_t& count = left[FolderOf(change)];
    if (count == 0) continue;
    --count;
    after.seen_.Apply(change);
  }
  // What lies in a lost folder is lost. A folder sorts after the one that it lies in.
  std::set<std::string> reached = {root_};
  for (const std::string& folder : after.seen_.folders) {
    if (reached.contains(ParentOf(folder))) reached.insert(folder);
  }
  after.seen_.folders = std::move(reached);
  std::erase_if(after.seen_.files, [&](const auto& name) {
    return !after.seen_.folders.contains(ParentOf(name.first));
  });
  for (const auto& [path, id] : after.seen_.files) {
    if (after.files_.contains(id)) continue;
    File& file = after.files_[id];
    file.content = file.synced = Survivor(files_.at(id), survival, random);
  }
  after.synced_ = after.seen_;
  after.next_file_ = next_file_;
  return after;
}

std::vector<std::string> DiskState::List(const std::string& folder) const {
  std::vector<std::string> names;
  const auto add = [&](absl::string_view path) {
    if (ParentOf(path) == folder) names.emplace_back(path.substr(folder.size() + 1));
  };
  for (const auto& [path, file] : seen_.files) add(path);
  for (const std::string& path : seen_.folders) add(path);
  return names;
}

}  // namespace kvtier
