#include "store/host_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "base/sync_point.h"

namespace kvtier {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kHugePageBytes = 2 * limits::kMiB;
// Without a budget there is no fraction of it to keep.
constexpr uint64_t kKeptBytesOfUnbounded = 256 * limits::kMiB;
// A kept file is cut down to a band at most this much smaller.
constexpr uint64_t kKeptOversizeMax = 2;
// Against our own mistakes, sealed bands are read-only in builds with assertions. Changing the
// protection of a band's pages and back costs about as much as writing them.
#ifdef NDEBUG
constexpr bool kProtectsSealed = false;
#else
constexpr bool kProtectsSealed = true;
#endif
// Descriptors and mappings for everything else: connections, RocksDB, libraries.
constexpr uint64_t kOtherFiles = 2048;
constexpr uint64_t kOtherMappings = 8192;

uint64_t RoundUp(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

// What the kernel does about huge pages in memory files, and so what it takes for one.
enum class HugePages {
  kNever,
  kOnAdvice,  // Inside the file only: a file still takes its own pages and no more.
  kAlways,    // Also for the end of a file.
};

HugePages ReadHugePages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string line;
  std::getline(file, line);
  if (absl::StrContains(line, "[advise]") || absl::StrContains(line, "[within_size]")) {
    return HugePages::kOnAdvice;
  }
  if (absl::StrContains(line, "[always]") || absl::StrContains(line, "[force]")) {
    return HugePages::kAlways;
  }
  return HugePages::kNever;
}

// One memory file and our mapping of it. Owned by a band, or kept.
struct MemoryFile {
  int fd = -1;
  std::byte* data = nullptr;
  uint64_t mapped_bytes = 0;   // Whole pages.
  uint64_t charged_bytes = 0;  // At least mapped_bytes.
};

void Close(MemoryFile& file) {
  if (file.data != nullptr) munmap(file.data, file.mapped_bytes);
  if (file.fd >= 0) close(file.fd);
  file = MemoryFile();
}

absl::Status NoMemory(absl::string_view call, uint64_t bytes) {
  const int error = errno;
  return absl::ResourceExhaustedError(
      absl::StrCat("no memory for a file of ", bytes, " bytes: ", call, ": ", strerror(error)));
}

// Makes `file` (which may be new) `bytes` long, with every page there: a page that the machine
// lacks is an error here and not a signal at the first touch. What it has already is not walked
// through again.
absl::Status Resize(MemoryFile& file, uint64_t bytes, HugePages huge_pages) {
  if (file.fd < 0) {
    file.fd = memfd_create("kvtier-band", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file.fd < 0) return NoMemory("memfd_create", bytes);
  }
  if (ftruncate(file.fd, static_cast<off_t>(bytes)) != 0) return NoMemory("ftruncate", bytes);
  int allocated = 0;
  while (bytes > file.mapped_bytes &&
         (allocated = fallocate(file.fd, 0, static_cast<off_t>(file.mapped_bytes),
                                static_cast<off_t>(bytes - file.mapped_bytes))) != 0 &&
         errno == EINTR) {
  }
  if (allocated != 0) return NoMemory("fallocate", bytes);
  const uint64_t mapped_bytes = RoundUp(bytes, kPageBytes);
  if (mapped_bytes != file.mapped_bytes) {
    void* const data =
        file.data == nullptr
            ? mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0)
            : mremap(file.data, file.mapped_bytes, mapped_bytes, MREMAP_MAYMOVE);
    if (data == MAP_FAILED) return NoMemory("mmap", bytes);
    file.data = static_cast<std::byte*>(data);
    file.mapped_bytes = mapped_bytes;
  }
  if (huge_pages != HugePages::kNever) {
    // Advice: without it the band is only slower.
    madvise(file.data, file.mapped_bytes,
            mapped_bytes >= kHugePageBytes ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }
  return absl::OkStatus();
}

// [layers + 1]
std::vector<uint64_t> OffsetsOf(const BandEntry& band) {
  std::vector<uint64_t> offsets = {0};
  for (const SegmentEntry& layer : band.layers) {
    offsets.push_back(offsets.back() + layer.encoded_bytes());
  }
  return offsets;
}

// What files and heap blocks have in common: where the segments lie.
class BandBase : public BandMemory, public std::enable_shared_from_this<BandBase> {
 public:
  explicit BandBase(std::vector<uint64_t> offsets) : offsets_(std::move(offsets)) {}

  MutableByteSpan Writable(LayerIndex layer) override {
    KVTIER_CHECK(!sealed_) << "a sealed band is never written";
    return {data() + Offset(layer), bytes_of(layer)};
  }
  bool sealed() const override { return sealed_; }
  uint32_t layer_count() const override { return static_cast<uint32_t>(offsets_.size() - 1); }
  uint64_t Offset(LayerIndex layer) const override { return offsets_[layer.value()]; }
  SegmentRef Segment(LayerIndex layer) const override {
    return SegmentRef(shared_from_this(),
                      std::span<const std::byte>(data() + Offset(layer), bytes_of(layer)));
  }

 protected:
  virtual std::byte* data() const = 0;
  uint64_t bytes() const { return offsets_.back(); }
  void set_sealed() { sealed_ = true; }

 private:
  uint64_t bytes_of(LayerIndex layer) const {
    return offsets_[layer.value() + 1] - offsets_[layer.value()];
  }
  const std::vector<uint64_t> offsets_;  // [layers + 1]
  bool sealed_ = false;
};

class HostMemoryImpl final : public HostMemory,
                             public std::enable_shared_from_this<HostMemoryImpl> {
 public:
  HostMemoryImpl(const Options& options, std::shared_ptr<MemoryBudget> budget)
      : options_(options),
        budget_(std::move(budget)),
        huge_pages_(ReadHugePages()),
        kept_bytes_max_(
            budget_->usage().budget_bytes == 0
                ? kKeptBytesOfUnbounded
                : static_cast<uint64_t>(options.kept_fraction *
                                        static_cast<double>(budget_->usage().budget_bytes))) {}

  ~HostMemoryImpl() override {
    budget_->SetReclaimer(nullptr);
    MutexLock lock(&mutex_);
    while (!kept_.empty()) CloseSmallestKept();
  }

  absl::StatusOr<std::shared_ptr<BandMemory>> Allocate(const BandEntry& band,
                                                       BandPlacement placement) override {
    return AllocateAt(OffsetsOf(band), placement);
  }
  absl::StatusOr<std::shared_ptr<BandMemory>> AllocatePiece(uint64_t bytes) override {
    return AllocateAt({0, bytes}, BandPlacement::kAny);
  }
  uint64_t ChargeOf(const BandEntry& band, BandPlacement placement) const override {
    return ChargeOfBytes(band.encoded_bytes(), placement);
  }
  uint64_t ChargeOfPiece(uint64_t bytes) const override {
    return ChargeOfBytes(bytes, BandPlacement::kAny);
  }
  std::shared_ptr<const BandMemory> Find(std::span<const SegmentRef> layers) const override;

  const std::shared_ptr<MemoryBudget>& budget() const override { return budget_; }
  Counters counters() const override {
    return {.files = files_.load(std::memory_order_relaxed),
            .files_recycled = files_recycled_.load(std::memory_order_relaxed),
            .files_refused = files_refused_.load(std::memory_order_relaxed)};
  }

  // --- For bands.
  void Register(const BandBase* band) {
    MutexLock lock(&mutex_);
    bands_.insert(band);
  }
  void Unregister(const BandBase* band) {
    MutexLock lock(&mutex_);
    bands_.erase(band);
  }
  // Takes back what nobody outside has ever seen.
  void Recycle(MemoryFile file) {
    if (budget_->Keep(file.charged_bytes, kept_bytes_max_)) {
      MutexLock lock(&mutex_);
      kept_.emplace(file.mapped_bytes, file);
      CloseExcess();
      return;
    }
    Destroy(file);
  }
  void Destroy(MemoryFile file) {
    const uint64_t charged = file.charged_bytes;
    Close(file);
    files_.fetch_sub(1, std::memory_order_relaxed);
    budget_->Release(charged);  // Last: by now the kernel has it back.
  }

  // What the budget calls.
  void Reclaim() {
    MutexLock lock(&mutex_);
    CloseExcess();
  }

 private:
  using Kept = std::multimap<uint64_t, MemoryFile>;  // By mapped_bytes.

  bool WantsFile(uint64_t bytes, BandPlacement placement) const {
    return bytes > 0 && (placement == BandPlacement::kFile || bytes >= options_.file_bytes_min);
  }
  uint64_t FileCharge(uint64_t bytes) const {
    const bool rounds_up = huge_pages_ == HugePages::kAlways && bytes >= kHugePageBytes;
    return RoundUp(bytes, rounds_up ? kHugePageBytes : kPageBytes);
  }

  uint64_t ChargeOfBytes(uint64_t bytes, BandPlacement placement) const {
    return WantsFile(bytes, placement) ? FileCharge(bytes) : bytes;
  }

  // `offsets`: of the segments, and where the last one ends.
  absl::StatusOr<std::shared_ptr<BandMemory>> AllocateAt(std::vector<uint64_t> offsets,
                                                         BandPlacement placement);
  absl::StatusOr<std::shared_ptr<BandMemory>> AllocateOnHeap(std::vector<uint64_t> offsets);
  // A kept file or a new one, resized and charged. Nothing (fd < 0): there are too many files.
  absl::StatusOr<MemoryFile> TakeFile(uint64_t bytes);
  // The smallest that is large enough, else the largest; fd < 0 if there is none. Still charged as
  // kept. One that is far too large is left for a band of its size, since what is cut off is lost,
  // unless it is that or no file.
  MemoryFile TakeKept(uint64_t bytes) {
    MutexLock lock(&mutex_);
    if (kept_.empty()) return MemoryFile();
    auto best = kept_.lower_bound(RoundUp(bytes, kPageBytes));
    const bool is_too_large = best != kept_.end() && best->first / kKeptOversizeMax > bytes;
    if (best == kept_.end() || (is_too_large && best != kept_.begin())) {
      --best;
    } else if (is_too_large && files_.load(std::memory_order_relaxed) < options_.files_max) {
      return MemoryFile();
    }
    const MemoryFile file = best->second;
    kept_.erase(best);
    return file;
  }
  // A kept file that is in nobody's list any more.
  void CloseKept(MemoryFile file) {
    const uint64_t charged = file.charged_bytes;
    Close(file);
    files_.fetch_sub(1, std::memory_order_relaxed);
    budget_->ReleaseKept(charged);
  }
  // Under the lock, so that whoever waits for it finds the memory free.
  void CloseExcess() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (!kept_.empty() && budget_->excess_bytes() > 0) CloseSmallestKept();
  }
  void CloseSmallestKept() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const MemoryFile file = kept_.begin()->second;
    kept_.erase(kept_.begin());
    CloseKept(file);
  }

  const Options options_;
  const std::shared_ptr<MemoryBudget> budget_;
  const HugePages huge_pages_;
  const uint64_t kept_bytes_max_;
  std::atomic<uint64_t> files_{0};
  std::atomic<uint64_t> files_recycled_{0};
  std::atomic<uint64_t> files_refused_{0};
  mutable Mutex mutex_;
  Kept kept_ ABSL_GUARDED_BY(mutex_);
  // Live ones: what a SegmentRef's owner is compared with.
  absl::flat_hash_set<const void*> bands_ ABSL_GUARDED_BY(mutex_);
};

class FileBand final : public BandBase {
 public:
  FileBand(std::shared_ptr<HostMemoryImpl> memory, std::vector<uint64_t> offsets, MemoryFile file)
      : BandBase(std::move(offsets)), memory_(std::move(memory)), file_(file) {
    memory_->Register(this);
  }
  ~FileBand() override {
    memory_->Unregister(this);
    bool exported = false;
    {
      MutexLock lock(&mutex_);
      exported = exported_;
    }
    // Whoever was given the file may still look at it: its pages must never carry anything else.
    if (exported || (kProtectsSealed &&
                     mprotect(file_.data, file_.mapped_bytes, PROT_READ | PROT_WRITE) != 0)) {
      memory_->Destroy(file_);
    } else {
      memory_->Recycle(file_);
    }
  }

  void Seal() override {
    if (sealed()) return;
    // A failure leaves the band as safe as the heap is.
    if (kProtectsSealed) mprotect(file_.data, file_.mapped_bytes, PROT_READ);
    set_sealed();
  }
  uint64_t charged_bytes() const override { return file_.charged_bytes; }
  bool is_file() const override { return true; }
  absl::StatusOr<MemoryFileView> Export() const override {
    KVTIER_CHECK(sealed());
    MutexLock lock(&mutex_);
    if (!exported_) {
      exported_ = true;  // Also if this fails: part of the seals may be there.
      constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
      is_file_sealed_ = fcntl(file_.fd, F_ADD_SEALS, kSeals) == 0;
    }
    if (!is_file_sealed_) return absl::FailedPreconditionError("a memory file cannot be sealed");
    return MemoryFileView{.fd = file_.fd, .bytes = bytes()};
  }

 protected:
  std::byte* data() const override { return file_.data; }

 private:
  const std::shared_ptr<HostMemoryImpl> memory_;
  const MemoryFile file_;
  mutable Mutex mutex_;
  mutable bool exported_ ABSL_GUARDED_BY(mutex_) = false;
  mutable bool is_file_sealed_ ABSL_GUARDED_BY(mutex_) = false;
};

class HeapBand final : public BandBase {
 public:
  HeapBand(std::shared_ptr<HostMemoryImpl> memory, std::vector<uint64_t> offsets,
           MemoryCharge charge, AlignedBytes block)
      : BandBase(std::move(offsets)),
        memory_(std::move(memory)),
        charge_(std::move(charge)),
        block_(std::move(block)) {
    memory_->Register(this);
  }
  ~HeapBand() override { memory_->Unregister(this); }

  void Seal() override { set_sealed(); }
  uint64_t charged_bytes() const override { return charge_.bytes(); }
  bool is_file() const override { return false; }
  absl::StatusOr<MemoryFileView> Export() const override {
    return absl::FailedPreconditionError("the band lies on the heap");
  }

 protected:
  std::byte* data() const override { return const_cast<std::byte*>(block_.data()); }

 private:
  const std::shared_ptr<HostMemoryImpl> memory_;
  const MemoryCharge charge_;  // Before the block: released after it is gone.
  const AlignedBytes block_;
};

absl::StatusOr<std::shared_ptr<BandMemory>> HostMemoryImpl::AllocateOnHeap(
    std::vector<uint64_t> offsets) {
  const uint64_t bytes = offsets.back();
  KVTIER_ASSIGN_OR_RETURN(MemoryCharge charge, MemoryCharge::Take(budget_, bytes));
  KVTIER_ASSIGN_OR_RETURN(AlignedBytes block,
                          AlignedBytes::TryAllocate(bytes, AlignedBytes::Fill::kUninitialized));
  return std::make_shared<HeapBand>(shared_from_this(), std::move(offsets), std::move(charge),
                                    std::move(block));
}

absl::StatusOr<MemoryFile> HostMemoryImpl::TakeFile(uint64_t bytes) {
  const uint64_t charge = FileCharge(bytes);
  MemoryFile file = TakeKept(bytes);
  KVTIER_SYNC_POINT("host_memory.after_take_kept");
  if (file.fd >= 0) {
    if (file.charged_bytes > charge) {  // What it has too much goes first: no page counts twice.
      if (const absl::Status resized = Resize(file, bytes, huge_pages_); !resized.ok()) {
        CloseKept(file);
        return resized;
      }
      budget_->ReleaseKept(std::exchange(file.charged_bytes, charge) - charge);
    }
    const absl::Status charged = budget_->ChargeFromKept(file.charged_bytes, charge);
    if (!charged.ok()) {
      MutexLock lock(&mutex_);
      kept_.emplace(file.mapped_bytes, file);
      CloseExcess();  // Somebody may have wanted it meanwhile.
      return charged;
    }
    files_recycled_.fetch_add(1, std::memory_order_relaxed);
  } else {
    if (files_.fetch_add(1, std::memory_order_relaxed) >= options_.files_max) {
      files_.fetch_sub(1, std::memory_order_relaxed);
      files_refused_.fetch_add(1, std::memory_order_relaxed);
      return file;
    }
    if (const absl::Status charged = budget_->Charge(charge); !charged.ok()) {
      files_.fetch_sub(1, std::memory_order_relaxed);
      return charged;
    }
  }
  file.charged_bytes = charge;
  if (const absl::Status resized = Resize(file, bytes, huge_pages_); !resized.ok()) {
    Destroy(file);
    return resized;
  }
  return file;
}

absl::StatusOr<std::shared_ptr<BandMemory>> HostMemoryImpl::AllocateAt(
    std::vector<uint64_t> offsets, BandPlacement placement) {
  if (!WantsFile(offsets.back(), placement)) return AllocateOnHeap(std::move(offsets));
  KVTIER_ASSIGN_OR_RETURN(const MemoryFile file, TakeFile(offsets.back()));
  if (file.fd < 0) {
    if (placement == BandPlacement::kFile) {
      return absl::ResourceExhaustedError(
          absl::StrCat("there are ", options_.files_max, " memory files already (files_max)"));
    }
    KVTIER_LOG_EVERY_N_SEC(WARNING, 60)
        << "bands go to the heap and cannot be shared: there are " << options_.files_max
        << " memory files (kMemoryFilesMax, open files of the process, vm.max_map_count)";
    return AllocateOnHeap(std::move(offsets));
  }
  return std::make_shared<FileBand>(shared_from_this(), std::move(offsets), file);
}

std::shared_ptr<const BandMemory> HostMemoryImpl::Find(std::span<const SegmentRef> layers) const {
  if (layers.empty() || layers.front().owner() == nullptr) return nullptr;
  const std::shared_ptr<const void>& owner = layers.front().owner();
  {
    MutexLock lock(&mutex_);
    // Ours, and alive because the segment holds it.
    if (!bands_.contains(owner.get())) return nullptr;
  }
  auto band = std::static_pointer_cast<const BandBase>(owner);
  if (band->layer_count() != layers.size()) return nullptr;
  for (uint32_t layer = 0; layer < layers.size(); ++layer) {
    const SegmentRef expected = band->Segment(LayerIndex(layer));
    if (layers[layer].owner() != owner || layers[layer].bytes().data() != expected.bytes().data() ||
        layers[layer].bytes().size() != expected.bytes().size()) {
      return nullptr;
    }
  }
  return band;
}

uint64_t ReadMaxMapCount() {
  std::ifstream file("/proc/sys/vm/max_map_count");
  uint64_t count = 0;
  return file >> count ? count : 65530;  // The kernel's default.
}

}  // namespace

std::shared_ptr<HostMemory> HostMemory::Create(const Options& options,
                                               std::shared_ptr<MemoryBudget> budget) {
  auto memory = std::make_shared<HostMemoryImpl>(options, budget);
  budget->SetReclaimer([weak = std::weak_ptr<HostMemoryImpl>(memory)] {
    if (const std::shared_ptr<HostMemoryImpl> alive = weak.lock()) alive->Reclaim();
  });
  return memory;
}

uint32_t ReserveMemoryFiles() {
  rlimit files = {};
  KVTIER_CHECK_EQ(getrlimit(RLIMIT_NOFILE, &files), 0) << strerror(errno);
  if (files.rlim_cur < files.rlim_max) {
    files.rlim_cur = std::min<rlim_t>(files.rlim_max, limits::kMemoryFilesMax + kOtherFiles);
    if (setrlimit(RLIMIT_NOFILE, &files) != 0) {
      KVTIER_LOG(WARNING) << "cannot raise the limit on open files: " << strerror(errno);
      getrlimit(RLIMIT_NOFILE, &files);
    }
  }
  const auto left = [](uint64_t all, uint64_t other) { return all > other ? all - other : 0; };
  return static_cast<uint32_t>(
      std::min({uint64_t{limits::kMemoryFilesMax}, left(files.rlim_cur, kOtherFiles),
                left(ReadMaxMapCount(), kOtherMappings)}));
}

}  // namespace kvtier
