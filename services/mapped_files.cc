#include "services/mapped_files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvtier {
namespace {

// How much of a file in memory the kernel maps at one fault (its fault_around_bytes by default).
constexpr uint64_t kFaultBytes = uint64_t{64} << 10;

absl::Status CheckSeals(int fd) {
  constexpr int kNeeded = F_SEAL_SHRINK | F_SEAL_GROW;
  constexpr int kNoWriting = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kNeeded) != kNeeded || (seals & kNoWriting) == 0) {
    return absl::DataLossError("the file is not sealed");
  }
  return absl::OkStatus();
}

}  // namespace

MappedFile::~MappedFile() { munmap(const_cast<std::byte*>(mapping_.data()), mapping_.size()); }

ByteSpan MappedFile::Prepared(uint64_t begin, uint64_t end) const {
  // One read for each fault takes half of the time of MADV_POPULATE_READ or MAP_POPULATE, which go
  // page by page (ADR 11); where the pages are there already it costs next to nothing.
  for (uint64_t at = begin / kFaultBytes * kFaultBytes; at < end; at += kFaultBytes) {
    [[maybe_unused]] const std::byte byte = static_cast<const volatile std::byte&>(mapping_[at]);
  }
  return mapping_.subspan(begin, end - begin);
}

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFiles::Map(int fd, uint64_t bytes) {
  if (const absl::Status sealed = CheckSeals(fd); !sealed.ok()) return sealed;
  struct stat stat = {};
  if (fstat(fd, &stat) != 0 || static_cast<uint64_t>(stat.st_size) != bytes) {
    return absl::DataLossError(
        absl::StrCat("the file has ", stat.st_size, " bytes, the manifest says ", bytes));
  }
  const FileId id(stat.st_dev, stat.st_ino);
  MutexLock lock(&mutex_);
  if (const auto found = files_.find(id); found != files_.end()) {
    if (std::shared_ptr<const MappedFile> mapped = found->second.lock()) return mapped;
  }
  void* const data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot map ", bytes, " bytes: ", strerror(errno)));
  }
  auto mapped =
      std::make_shared<const MappedFile>(ByteSpan(static_cast<const std::byte*>(data), bytes));
  std::erase_if(files_, [](const auto& file) { return file.second.expired(); });
  files_[id] = mapped;
  return mapped;
}

}  // namespace kvtier
