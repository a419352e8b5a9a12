#include "compressor/onednn_linear.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <exception>
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

// Rows of one task. A remainder is cut into the smaller ones, so that three primitives serve every
// number of rows; the layout of packed weights does not depend on the rows.
constexpr int64_t kRowBlocks[] = {64, 8, 1};
// Floats of one slice of weights: 1 MiB, half of a core's second-level cache or less.
constexpr int64_t kSliceFloats = int64_t{1} << 18;
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

memory::desc RowMajor(int64_t rows, int64_t cols, int64_t stride) {
  return memory::desc({rows, cols}, memory::data_type::f32, memory::dims{stride, 1});
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
  OnednnWeights(int64_t out, int64_t in, ThreadPool& pool, ScratchPool& scratch)
      : out_(out), in_(in), pool_(pool), scratch_(scratch), engine_(dnnl::engine::kind::cpu, 0) {}

  int64_t in_features() const override { return in_; }
  int64_t out_features() const override { return out_; }
  uint64_t bytes() const override { return bytes_; }

  void Pack(const std::byte* weights, DType dtype);
  absl::Status Run(const float* x, int64_t rows, float* y) const;

 private:
  struct Slice {
    int64_t begin = 0;  // First output column.
    const SlicePrimitives* primitives = nullptr;
    memory packed;
  };

  std::unique_ptr<SlicePrimitives> MakePrimitives(int64_t columns) const;
  void RunBlock(const Slice& slice, size_t block, const float* x, float* y) const;

  const int64_t out_;
  const int64_t in_;
  ThreadPool& pool_;
  ScratchPool& scratch_;
  dnnl::engine engine_;
  std::vector<std::unique_ptr<SlicePrimitives>> primitives_;  // One per width: usual, last.
  std::vector<Slice> slices_;
  int64_t scratchpad_floats_ = 0;
  uint64_t bytes_ = 0;
};

std::unique_ptr<SlicePrimitives> OnednnWeights::MakePrimitives(int64_t columns) const {
  auto result = std::make_unique<SlicePrimitives>();
  result->columns = columns;
  result->packed = memory::desc({in_, columns}, memory::data_type::f32, memory::format_tag::any);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // Ours: see RunBlock.
  for (int64_t rows : kRowBlocks) {
    const memory::desc from = RowMajor(rows, in_, in_);
    const memory::desc to = RowMajor(rows, columns, out_);
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
  int64_t width = kSliceFloats / in_ / kSliceColumnsMultiple * kSliceColumnsMultiple;
  width = std::min(out_, std::max(width, kSliceColumnsMultiple));
  dnnl::stream stream(engine_);
  std::vector<float> plain(static_cast<size_t>(width * in_));
  for (int64_t begin = 0; begin < out_; begin += width) {
    const int64_t columns = std::min(width, out_ - begin);
    if (primitives_.empty() || primitives_.back()->columns != columns) {
      primitives_.push_back(MakePrimitives(columns));
      for (const memory::desc& scratch : primitives_.back()->scratch) {
        scratchpad_floats_ =
            std::max(scratchpad_floats_, static_cast<int64_t>(scratch.get_size() / 4 + 1));
      }
    }
    Slice slice{.begin = begin, .primitives = primitives_.back().get(), .packed = {}};
    slice.packed = memory(slice.primitives->packed, engine_);
    LoadFloats(weights + begin * in_ * DTypeBytes(dtype), dtype,
               std::span<float>(plain).first(static_cast<size_t>(columns * in_)));
    // [columns, in] row-major is [in, columns] with the strides exchanged.
    memory source(memory::desc({in_, columns}, memory::data_type::f32, memory::dims{1, in_}),
                  engine_, plain.data());
    dnnl::reorder(source, slice.packed).execute(stream, source, slice.packed);
    stream.wait();
    bytes_ += slice.primitives->packed.get_size();
    slices_.push_back(std::move(slice));
  }
}

void OnednnWeights::RunBlock(const Slice& slice, size_t block, const float* x, float* y) const {
  const SlicePrimitives& p = *slice.primitives;
  // oneDNN's own scratchpads belong to the thread that made the primitive; ours to the one that
  // runs.
  ScratchPool::Lease scratchpad = scratch_.Borrow(scratchpad_floats_);
  dnnl::stream stream(engine_);
  memory from(p.from[block], engine_, const_cast<float*>(x));
  memory to(p.to[block], engine_, y + slice.begin);
  memory scratch(p.scratch[block], engine_, scratchpad.data());
  p.matmuls[block].execute(stream, {{DNNL_ARG_SRC, from},
                                    {DNNL_ARG_WEIGHTS, slice.packed},
                                    {DNNL_ARG_DST, to},
                                    {DNNL_ARG_SCRATCHPAD, scratch}});
  stream.wait();
}

absl::Status OnednnWeights::Run(const float* x, int64_t rows, float* y) const {
  const int64_t large = rows / kRowBlocks[0];
  const int64_t middle = rows % kRowBlocks[0] / kRowBlocks[1];
  const int64_t small = rows % kRowBlocks[1];
  const int64_t slices = static_cast<int64_t>(slices_.size());
  std::atomic<bool> failed{false};
  const auto run = [&](int64_t task) {
    const int64_t block = task / slices;
    const size_t size = block < large ? 0 : (block < large + middle ? 1 : 2);
    const int64_t row = size == 0   ? block * kRowBlocks[0]
                        : size == 1 ? large * kRowBlocks[0] + (block - large) * kRowBlocks[1]
                                    : rows - small + (block - large - middle);
    try {
      const OneOpenMpThread one_thread;
      RunBlock(slices_[static_cast<size_t>(task % slices)], size, x + row * in_, y + row * out_);
    } catch (const std::exception&) {
      failed.store(true, std::memory_order_relaxed);
    }
  };
  const int64_t tasks = (large + middle + small) * slices;
  if (2 * rows * in_ * out_ < kParallelFlopsMin) {
    for (int64_t task = 0; task < tasks; ++task) run(task);
  } else {
    pool_.For(tasks, run);
  }
  return failed ? absl::InternalError("linear: oneDNN's matmul failed") : absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinearWeights>> PackOnednnLinear(const std::byte* weights,
                                                                DType dtype, int64_t out_features,
                                                                int64_t in_features,
                                                                ThreadPool& pool,
                                                                ScratchPool& scratch) {
  try {
    auto result = std::make_unique<OnednnWeights>(out_features, in_features, pool, scratch);
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

absl::Status RunOnednnLinear(TensorView x, const LinearWeights& weights, TensorView y) {
  const auto* packed = dynamic_cast<const OnednnWeights*>(&weights);
  if (packed == nullptr) return absl::InvalidArgumentError("linear: weights of another backend");
  return packed->Run(static_cast<const float*>(x.data), x.rows, static_cast<float*>(y.data));
}

}  // namespace kvtier
