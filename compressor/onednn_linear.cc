#include "compressor/onednn_linear.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

#include <oneapi/dnnl/dnnl.hpp>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/host_backend.h"

namespace kvtier {
namespace {

using dnnl::memory;

// Rows of one task, descending. Rows are cut into the largest that fit, so that four primitives
// serve every number of rows; the layout of packed weights does not depend on the rows.
constexpr int64_t kRowBlocks[] = {128, 32, 8, 1};
// One slice of packed weights: a core's second-level cache or less.
constexpr int64_t kSliceBytes = int64_t{1} << 20;
constexpr int64_t kSliceColumnsMultiple = 64;
// Below this a wake-up of another thread costs more than it brings.
constexpr int64_t kParallelFlopsMin = 2'000'000;

// oneDNN runs its loops through OpenMP where it was built so. Threads come from our pool, so each
// of them asks OpenMP for no more than itself, and a caller's own setting is put back. Looked up at
// run time: other builds of oneDNN have no OpenMP.
class OneOpenMpThread {
 public:
  OneOpenMpThread() {
    if (Functions().set != nullptr) {
      before_ = Functions().get();
      if (before_ != 1) Functions().set(1);
    }
  }
  ~OneOpenMpThread() {
    if (before_ != 1) Functions().set(before_);
  }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  struct OpenMp {
    int (*get)() = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
    void (*set)(int) = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  };
  static const OpenMp& Functions() {
    static const OpenMp functions;
    return functions;
  }
  int before_ = 1;
};

memory::data_type TypeOf(DType dtype) {
  return dtype == DType::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

memory::desc RowMajor(int64_t rows, int64_t cols, DType dtype) {
  return memory::desc({rows, cols}, TypeOf(dtype), memory::dims{cols, 1});
}

// Rows [begin, begin + kRowBlocks[size]).
struct RowBlock {
  int64_t begin = 0;
  size_t size = 0;
};
std::vector<RowBlock> CutRows(int64_t rows) {
  std::vector<RowBlock> blocks;
  size_t size = 0;
  for (int64_t row = 0; row < rows; row += kRowBlocks[size]) {
    while (kRowBlocks[size] > rows - row) ++size;
    blocks.push_back({.begin = row, .size = size});
  }
  return blocks;
}

// Matmuls [rows, in] x [in, columns] for each of kRowBlocks, for all slices of one width.
struct SlicePrimitives {
  int64_t columns = 0;
  std::vector<dnnl::matmul> matmuls;            // [kRowBlocks]
  std::vector<memory::desc> from, to, scratch;  // [kRowBlocks]
  memory::desc packed;                          // of the weights
};

class OnednnWeights final : public LinearWeights {
 public:
  OnednnWeights(DType compute, int64_t out, int64_t in, ThreadPool& pool, ScratchPool& scratch)
      : compute_(compute),
        out_(out),
        in_(in),
        pool_(pool),
        scratch_(scratch),
        engine_(dnnl::engine::kind::cpu, 0) {}

  int64_t in_features() const override { return in_; }
  int64_t out_features() const override { return out_; }
  uint64_t bytes() const override { return bytes_; }
  DType compute() const { return compute_; }

  void Pack(const std::byte* weights, DType dtype);
  // Into [out, in].
  void Unpack(std::span<float> to) const;
  absl::Status Run(const std::byte* x, int64_t rows, float* y) const;

 private:
  struct Slice {
    int64_t begin = 0;  // First output column.
    const SlicePrimitives* primitives = nullptr;
    memory packed;
  };

  std::unique_ptr<SlicePrimitives> MakePrimitives(int64_t columns) const;
  void RunBlock(const Slice& slice, size_t size, const std::byte* x, float* y) const;

  const DType compute_;  // Of x and of the packed weights.
  const int64_t out_;
  const int64_t in_;
  ThreadPool& pool_;
  ScratchPool& scratch_;
  dnnl::engine engine_;
  std::vector<std::unique_ptr<SlicePrimitives>> primitives_;  // One per width: usual, last.
  std::vector<Slice> slices_;
  int64_t scratchpad_floats_ = 0;  // A multiple of a cache line.
  uint64_t bytes_ = 0;
};

std::unique_ptr<SlicePrimitives> OnednnWeights::MakePrimitives(int64_t columns) const {
  auto result = std::make_unique<SlicePrimitives>();
  result->columns = columns;
  result->packed = memory::desc({in_, columns}, TypeOf(compute_), memory::format_tag::any);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // Ours: see RunBlock.
  for (int64_t rows : kRowBlocks) {
    const memory::desc from = RowMajor(rows, in_, compute_);
    const memory::desc to = RowMajor(rows, columns, DType::kF32);
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(from, result->packed, to),
                                                   attributes, engine_);
    result->packed = description.weights_desc();  // The first chooses, the others follow.
    result->matmuls.emplace_back(description);
    result->from.push_back(from);
    result->to.push_back(to);
    result->scratch.push_back(description.scratchpad_desc());
  }
  return result;
}

void OnednnWeights::Pack(const std::byte* weights, DType dtype) {
  const OneOpenMpThread one_thread;
  const int64_t element_bytes = DTypeBytes(compute_);
  int64_t width = kSliceBytes / element_bytes / in_ / kSliceColumnsMultiple * kSliceColumnsMultiple;
  width = std::min(out_, std::max(width, kSliceColumnsMultiple));
  dnnl::stream stream(engine_);
  std::vector<std::byte> plain(static_cast<size_t>(width * in_ * element_bytes));
  for (int64_t begin = 0; begin < out_; begin += width) {
    const int64_t columns = std::min(width, out_ - begin);
    if (primitives_.empty() || primitives_.back()->columns != columns) {
      primitives_.push_back(MakePrimitives(columns));
      for (const memory::desc& scratch : primitives_.back()->scratch) {
        scratchpad_floats_ =
            std::max(scratchpad_floats_, static_cast<int64_t>(scratch.get_size() / 64 + 1) * 16);
      }
    }
    Slice slice{.begin = begin, .primitives = primitives_.back().get(), .packed = {}};
    slice.packed = memory(slice.primitives->packed, engine_);
    // Aligned here, whatever it is in its file.
    const std::byte* from = weights + begin * in_ * DTypeBytes(dtype);
    const size_t elements = static_cast<size_t>(columns * in_);
    if (compute_ == dtype) {
      std::memcpy(plain.data(), from, elements * DTypeBytes(dtype));
    } else {
      LoadFloats(from, dtype, std::span(reinterpret_cast<float*>(plain.data()), elements));
    }
    // [columns, in] row-major is [in, columns] with the strides exchanged.
    memory source(memory::desc({in_, columns}, TypeOf(compute_), memory::dims{1, in_}), engine_,
                  plain.data());
    dnnl::reorder(source, slice.packed).execute(stream, source, slice.packed);
    stream.wait();
    bytes_ += slice.primitives->packed.get_size();
    slices_.push_back(std::move(slice));
  }
}

void OnednnWeights::Unpack(std::span<float> to) const {
  const OneOpenMpThread one_thread;
  dnnl::stream stream(engine_);
  std::vector<std::byte> plain;
  for (const Slice& slice : slices_) {
    const size_t elements = static_cast<size_t>(slice.primitives->columns * in_);
    plain.resize(elements * DTypeBytes(compute_));
    // The strides of Pack.
    memory target(
        memory::desc({in_, slice.primitives->columns}, TypeOf(compute_), memory::dims{1, in_}),
        engine_, plain.data());
    memory packed = slice.packed;  // A handle: execute wants it mutable.
    dnnl::reorder(packed, target).execute(stream, packed, target);
    stream.wait();
    LoadFloats(plain.data(), compute_,
               to.subspan(static_cast<size_t>(slice.begin * in_), elements));
  }
}

void OnednnWeights::RunBlock(const Slice& slice, size_t size, const std::byte* x, float* y) const {
  const SlicePrimitives& p = *slice.primitives;
  const int64_t rows = kRowBlocks[size];
  // oneDNN takes a slower path where rows of y lie apart: a slice's product goes to a dense tile
  // first. Its own scratchpads belong to the thread that made the primitive; ours to the one that
  // runs.
  const bool dense = p.columns == out_ || rows == 1;
  const int64_t tile_floats = dense ? 0 : rows * p.columns;
  ScratchPool::Lease memory_of_task = scratch_.Borrow(scratchpad_floats_ + tile_floats);
  if (memory_of_task.data() == nullptr) throw std::bad_alloc();
  float* const tile = dense ? y + slice.begin : memory_of_task.data() + scratchpad_floats_;
  dnnl::stream stream(engine_);
  memory from(p.from[size], engine_, const_cast<std::byte*>(x));
  memory to(p.to[size], engine_, tile);
  memory scratch(p.scratch[size], engine_, memory_of_task.data());
  p.matmuls[size].execute(stream, {{DNNL_ARG_SRC, from},
                                   {DNNL_ARG_WEIGHTS, slice.packed},
                                   {DNNL_ARG_DST, to},
                                   {DNNL_ARG_SCRATCHPAD, scratch}});
  stream.wait();
  for (int64_t row = 0; !dense && row < rows; ++row) {
    std::copy_n(tile + row * p.columns, p.columns, y + row * out_ + slice.begin);
  }
}

absl::Status OnednnWeights::Run(const std::byte* x, int64_t rows, float* y) const {
  const std::vector<RowBlock> blocks = CutRows(rows);
  const int64_t slices = static_cast<int64_t>(slices_.size());
  const int64_t row_bytes = in_ * DTypeBytes(compute_);
  std::atomic<bool> failed{false};
  std::atomic<bool> no_memory{false};
  const auto run = [&](int64_t task) {
    const RowBlock& block = blocks[static_cast<size_t>(task / slices)];
    try {
      const OneOpenMpThread one_thread;
      RunBlock(slices_[static_cast<size_t>(task % slices)], block.size, x + block.begin * row_bytes,
               y + block.begin * out_);
    } catch (const std::bad_alloc&) {
      no_memory.store(true, std::memory_order_relaxed);
    } catch (const std::exception&) {
      failed.store(true, std::memory_order_relaxed);
    }
  };
  const int64_t tasks = static_cast<int64_t>(blocks.size()) * slices;
  if (2 * rows * in_ * out_ < kParallelFlopsMin) {
    for (int64_t task = 0; task < tasks; ++task) run(task);
  } else {
    pool_.For(tasks, run);
  }
  if (failed) return absl::InternalError("linear: oneDNN's matmul failed");
  return no_memory ? absl::ResourceExhaustedError("linear: no memory for scratch")
                   : absl::OkStatus();
}

}  // namespace

bool OnednnHasBf16Products() {
  // The names are sets of bits: one that has all of this one's includes its instructions.
  constexpr unsigned kNeeded = dnnl_cpu_isa_avx512_core_bf16;
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & kNeeded) == kNeeded;
}

absl::StatusOr<std::unique_ptr<LinearWeights>> PackOnednnLinear(
    const std::byte* weights, DType dtype, DType compute, int64_t out_features, int64_t in_features,
    ThreadPool& pool, ScratchPool& scratch) {
  try {
    auto result =
        std::make_unique<OnednnWeights>(compute, out_features, in_features, pool, scratch);
    result->Pack(weights, dtype);
    return std::unique_ptr<LinearWeights>(std::move(result));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("linear weights: out of memory");
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory) {
      return absl::ResourceExhaustedError("linear weights: oneDNN is out of memory");
    }
    return absl::InternalError(absl::StrCat("linear weights: oneDNN: ", error.what()));
  }
}

absl::Status ReadOnednnLinear(const LinearWeights& weights, std::span<float> to) {
  const auto* packed = dynamic_cast<const OnednnWeights*>(&weights);
  if (packed == nullptr) return absl::InvalidArgumentError("linear: weights of another backend");
  try {
    packed->Unpack(to);
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("linear weights: out of memory");
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory) {
      return absl::ResourceExhaustedError("linear weights: oneDNN is out of memory");
    }
    return absl::InternalError(absl::StrCat("linear weights: oneDNN: ", error.what()));
  }
}

absl::StatusOr<DType> OnednnInputDtype(const LinearWeights& weights) {
  const auto* packed = dynamic_cast<const OnednnWeights*>(&weights);
  if (packed == nullptr) return absl::InvalidArgumentError("linear: weights of another backend");
  return packed->compute();
}

absl::Status RunOnednnLinear(TensorView x, const LinearWeights& weights, TensorView y) {
  const auto* packed = dynamic_cast<const OnednnWeights*>(&weights);
  if (packed == nullptr) return absl::InvalidArgumentError("linear: weights of another backend");
  return packed->Run(static_cast<const std::byte*>(x.data), x.rows, static_cast<float*>(y.data));
}

}  // namespace kvtier
