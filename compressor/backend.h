// The narrow interface between the algorithms (forward, scoring, ranking, packing, decoding) and
// the hardware that runs them. ReferenceBackend (plain loops, double accumulation) is the twin that
// every other implementation is tested against by tests/conformance/backend_conformance.h;
// CpuBackend is the fast CPU path; CudaBackend lives in cuda/.
//
// Memory: a Tensor is backend memory, addressable by the host only on CPU backends; Upload and
// Download cross over. Activations are rows of elements of activation_dtype(). Operations are
// enqueued in order and may be asynchronous; Download and Synchronize wait.
//
// Errors: INVALID_ARGUMENT for shapes that do not fit (a caller's bug reported, not crashed on),
// RESOURCE_EXHAUSTED for memory, INTERNAL for a failing device.
//
// Thread-safe: operations on different tensors may run from different threads at once.
#ifndef KVTIER_COMPRESSOR_BACKEND_H_
#define KVTIER_COMPRESSOR_BACKEND_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compressor/backend_scores.h"
#include "compressor/library_counters.h"
#include "kvcache/geometry.h"
#include "kvcache/ragged_view.h"

namespace kvtier {

// Owned backend memory of a dtype and a row-major shape. Move-only; freed by its destructor.
class Tensor {
 public:
  using Free = void (*)(void* data, void* context);
  Tensor() = default;
  Tensor(void* data, DType dtype, int64_t rows, int64_t cols, Free free, void* context);
  ~Tensor();
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;

  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  uint64_t bytes() const { return uint64_t(rows_) * cols_ * DTypeBytes(dtype_); }

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  Free free_ = nullptr;
  void* context_ = nullptr;
};

// The first `rows` rows of a tensor, or some of its rows: what operations take. Does not own.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  TensorView() = default;
  TensorView(const Tensor& t)  // NOLINT: a tensor is its own full view.
      : data(t.data()), dtype(t.dtype()), rows(t.rows()), cols(t.cols()) {}
  TensorView Rows(int64_t begin, int64_t count) const {
    TensorView v = *this;
    v.data = static_cast<char*>(data) + begin * cols * DTypeBytes(dtype);
    v.rows = count;
    return v;
  }
};

// A linear layer's weights in whatever packing the backend likes. y = x W^T (+ bias).
class LinearWeights {
 public:
  virtual ~LinearWeights() = default;
  virtual int64_t in_features() const = 0;
  virtual int64_t out_features() const = 0;
  virtual uint64_t bytes() const = 0;
};

// Keys and values of one layer in one contiguous piece per KV head, with room to grow:
// element (head, row, d) at head * capacity * head_dim + row * head_dim + d. Does not own.
struct KvLayerView {
  void* keys = nullptr;    // [kv_heads, capacity, head_dim] of dtype
  void* values = nullptr;  // [kv_heads, capacity, head_dim] of dtype
  DType dtype = DType::kBf16;
  int64_t kv_heads = 0;
  int64_t capacity = 0;
  int64_t head_dim = 0;
};

// Rows that every query row sees, besides the causal tail. One entry per KV head; each a list of
// spans in backend memory (KvLayerView rows of a dense cache, or the bands of a RaggedCache).
using HeadSpans = std::vector<std::span<const RowSpan>>;  // [kv_heads]

// Attention of `q` over {every row of `spans`} and {rows [0, tail_rows) of `tail`, causally and
// bottom-right aligned: query row i sees tail rows 0 .. tail_rows - q.rows + i}. Query head
// h * group + g reads KV head h. Softmax in fp32 or better. Values of spans and tail (bf16: of its
// whole layer) are finite, as a backend may give rows that a query does not see the weight zero.
// Where one is not, or a logit is +-inf or NaN, rows of `out` are unspecified; never a crash. Spans
// may be of any codec (kvcache/row_codec.h) or mixed, the tail is raw. bf16 spans may be rounded.
//
// With a window, each query sees the last `window` of those rows, its own included (a sliding
// layer: query position p sees positions p - window + 1 .. p). The rows of such a head are one run
// of positions that ends with the tail's, so that counting rows is counting positions.
struct AttentionArgs {
  TensorView q = {};  // [rows, q_heads * head_dim], activation dtype
  const HeadSpans* spans = nullptr;
  DType span_dtype = DType::kBf16;
  KvLayerView tail = {};  // of span_dtype; tail_rows >= q.rows
  int64_t tail_rows = 0;
  float scale = 0;      // The model's softmax scale.
  int64_t window = 0;   // 0: none.
  TensorView out = {};  // [rows, q_heads * head_dim]
  // Rows of each head from its only span's first one on that may be read with the weight zero: they
  // lie together, are at least the span's, and finite. A library may choose its kernel by them, so
  // that one serves contexts of several lengths. 0: the span's own.
  int64_t readable_span_rows = 0;
  // Hardly another call has as many query rows: no kernel is worth being made for their number.
  bool odd_rows = false;
};

// What gates an MLP.
enum class Activation : uint8_t { kSilu, kGeluTanh };

// KVzip's score of one (layer, chunk) (docs/recipes.md): softmax of each query row over {sink
// keys, chunk keys, causal repeat keys}, then the maximum over the query group and all rows.
// Written as log scores, natural log, fp32, clamped to <= 0. With offsets (recipe kvzip+) it is
//   max over query head g of the group and row i of
//       log softmax_gi(j) + row_offsets[i] + key_offsets[g][j],   which may exceed 0.
struct ScoreArgs {
  TensorView q = {};        // [q_rows, q_heads * head_dim]: the repeat rows' queries after RoPE
  KvLayerView cache = {};   // the context's cache, only keys are read
  int64_t sink_rows = 0;    // rows [0, sink_rows) of the cache
  int64_t chunk_begin = 0;  // rows [chunk_begin, chunk_end) of the cache are scored
  int64_t chunk_end = 0;
  KvLayerView repeat = {};  // rows [0, q_rows): the repeat rows' own keys
  float scale = 0;
  // Backend memory, fp32, [kv_heads, out_stride], column 0 = chunk_begin (BackendScores::From).
  float* out = nullptr;
  int64_t out_stride = 0;
  // The softmax runs over rows [0, full_rows) of the cache, which include the chunk, instead of
  // {sinks, chunk}: recipe full-softmax. 0: chunk-local.
  int64_t full_rows = 0;
  const float* row_offsets = nullptr;  // host, [q_rows]; null: none
  const float* key_offsets = nullptr;  // host, [q_heads, key_offset_stride], column 0 = chunk_begin
  int64_t key_offset_stride = 0;
};

// Parameters of RoPE, half-split rotation (as Hugging Face's Llama).
struct RopeTable {
  std::vector<float> inverse_frequencies;  // [head_dim / 2]
  float attention_scaling = 1.0f;          // Multiplies cos and sin.
};

class Packer;       // compressor/packer.h
class DecodeSteps;  // compressor/decode_step.h

class Backend {
 public:
  virtual ~Backend() = default;
  virtual absl::string_view name() const = 0;  // "reference", "cpu", "cuda:0"
  virtual DType activation_dtype() const = 0;

  // Memory. Contents of a new tensor are unspecified; it starts at a multiple of 64 bytes. The
  // host's side of an upload may change or go as soon as Upload() returns.
  virtual absl::StatusOr<Tensor> Allocate(DType dtype, int64_t rows, int64_t cols) = 0;
  virtual absl::Status Upload(std::span<const std::byte> host, TensorView to) = 0;
  virtual absl::Status Download(TensorView from, std::span<std::byte> host) = 0;
  virtual absl::Status Synchronize() = 0;
  // True when Tensor::data() and RowSpans may point to ordinary host memory.
  virtual bool host_addressable() const = 0;
  // Rows that the cache of a context of `rows` should have room for: more where kernels are made
  // for its size and contexts of about one length can share them. Such a cache holds zeros where
  // nothing has been appended.
  virtual int64_t CacheRows(int64_t rows) const { return rows; }
  // What its libraries did; null where it uses none. Outlives the backend.
  virtual std::shared_ptr<const LibraryCounters> library_counters() const { return nullptr; }

  // Weights. `weights` is [out, in] row-major of `dtype`, host memory, not kept.
  virtual absl::StatusOr<std::unique_ptr<LinearWeights>> PrepareLinear(
      std::span<const std::byte> weights, DType dtype, int64_t out_features,
      int64_t in_features) = 0;

  // The same with the rows of `table` ([out, in], any dtype) as weights, which stay where they are:
  // the LM head of a model whose embeddings are tied. bytes() is 0 where nothing is copied. The
  // table outlives the result.
  virtual absl::StatusOr<std::unique_ptr<LinearWeights>> ShareLinear(const TensorView& table) = 0;

  // Back again from whatever packing: [out, in] row-major into host memory, each value exactly the
  // one that products use. INVALID_ARGUMENT: another size, weights of another backend.
  virtual absl::Status ReadLinear(const LinearWeights& weights, std::span<float> to) = 0;

  // Dense operations. x and y are activations.
  // Rows of `table` ([vocabulary, hidden], any dtype), times `scale`.
  virtual absl::Status Embed(std::span<const uint32_t> ids, const TensorView& table, float scale,
                             TensorView y) = 0;
  virtual absl::Status Linear(TensorView x, const LinearWeights& weights, TensorView y) = 0;
  // weight [1, cols] fp32, whatever the activations are. y may be x.
  virtual absl::Status RmsNorm(TensorView x, TensorView weight, float epsilon, TensorView y) = 0;
  // x += y. A y of one row is added to every row of x (a bias).
  virtual absl::Status AddInPlace(TensorView x, TensorView y) = 0;
  // y = activation(gate) * up; y may be gate or up.
  virtual absl::Status GateMul(Activation activation, TensorView gate, TensorView up,
                               TensorView y) = 0;
  // Rotates `heads` heads per row in place; row i has position first_position + i.
  virtual absl::Status Rope(TensorView x, int64_t heads, const RopeTable& table,
                            int64_t first_position) = 0;
  // Copies rows of k and v ([rows, kv_heads * head_dim]) to rows [at, at + rows) of every head,
  // rounding to the layer's dtype (nearest even).
  virtual absl::Status AppendKv(TensorView k, TensorView v, KvLayerView layer, int64_t at) = 0;

  // The operations this project exists for.
  virtual absl::Status Attention(const AttentionArgs& args) = 0;
  virtual absl::Status ScoreColumnMax(const ScoreArgs& args) = 0;
  // Room for the scores of a context, where ScoreColumnMax writes them and packer() ranks them.
  // RESOURCE_EXHAUSTED: no memory. INVALID_ARGUMENT: more pairs than this backend can rank.
  virtual absl::StatusOr<std::unique_ptr<BackendScores>> MakeScores(const ScoreShape& shape) = 0;
  // Copies row positions[i] of head `head` to row i of keys_out and values_out (host memory,
  // [positions.size(), head_dim] of the layer's dtype).
  virtual absl::Status GatherRows(const KvLayerView& layer, int64_t head,
                                  std::span<const uint32_t> positions, std::byte* keys_out,
                                  std::byte* values_out) = 0;

  // Ranks and packs where the rows lie; owned by the backend. Null: both are done on the host, with
  // GatherRows.
  virtual Packer* packer() { return nullptr; }

  // Steps of one token that need nothing from the host but the token; owned by the backend. Null:
  // such a step is made of the operations above.
  virtual DecodeSteps* decode_steps() { return nullptr; }
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_BACKEND_H_
