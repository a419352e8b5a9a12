// Attention over a ragged cache, for engines in any language: each KV head has rows of its own
// number, in spans of their own codec (the bands of an object, then the tail that the engine
// appends to). C99 and C++; libkvtier_cuda.so.
//
// Two steps. The plan shares the rows of all heads out to equal pieces of work; it is made on the
// host, depends on shapes and pointers alone, and serves every step that has them (all layers of
// one shape need one each, as their pointers differ). The decode launches kernels on the caller's
// stream and does nothing else: no allocation, no copy, no waiting, so that it can be captured into
// a CUDA graph. Memory is the caller's throughout.
//
// A captured decode is valid for the bytes of its plan alone: its launches were taken from them.
// New queries in the same place are fine; when rows, their number or their place change, there is a
// new plan, and the decode is captured again or the graph updated from such a capture. Before the
// first capture, one decode of each shape runs outside of one: the first use of a kernel sets an
// attribute of it and may load its module, which a capture may refuse.
//
//   kvtier_ragged_sizes sizes = {sizeof sizes, KVTIER_RAGGED_VERSION, 0, 0};
//   kvtier_ragged_plan(&shape, NULL, 0, &sizes);                      // how much memory
//   kvtier_ragged_plan(&shape, plan, sizes.plan_bytes, &sizes);       // host; pinned is best
//   cudaMemcpyAsync(device_plan, plan, sizes.plan_bytes, ..., stream);
//   kvtier_ragged_decode(plan, device_plan, &io);                     // as often as wanted
//
// All functions may be called from any thread. They return 0 (KVTIER_RAGGED_OK), a negative number
// from below, or a positive one: the cudaError_t of a launch. Nothing is written on an error.
// Results repeat bit by bit on one device. What the rows of a codec are: docs/object_format.md.
#ifndef KVTIER_CUDA_KVTIER_RAGGED_DECODE_H_
#define KVTIER_CUDA_KVTIER_RAGGED_DECODE_H_

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define KVTIER_RAGGED_API __attribute__((visibility("default")))

// Grows when a field is added or changes its meaning; a library takes its own version only.
#define KVTIER_RAGGED_VERSION 1u

enum {
  KVTIER_RAGGED_OK = 0,
  KVTIER_RAGGED_BAD_VERSION = -1,   // A structure of another version or size.
  KVTIER_RAGGED_BAD_ARGUMENT = -2,  // A null, negative or unknown value; sizes that do not fit.
  KVTIER_RAGGED_TOO_SMALL = -3,     // The memory for plan or workspace: ask for the sizes.
  KVTIER_RAGGED_MISALIGNED = -4,    // A pointer that is not aligned as its comment says.
  KVTIER_RAGGED_NO_MEMORY = -5      // The host has none for making the plan.
};

// Elements of queries and raw rows.
enum { KVTIER_RAGGED_F32 = 1, KVTIER_RAGGED_F16 = 2, KVTIER_RAGGED_BF16 = 3 };
// Codecs of rows.
enum { KVTIER_RAGGED_RAW = 1, KVTIER_RAGGED_INT8 = 2, KVTIER_RAGGED_INT4 = 3 };

// Rows of one head that lie together, in device memory: [rows, head_dim] of the codec. Raw rows are
// aligned to their elements; bf16 ones to 16 bytes run on tensor cores.
typedef struct kvtier_ragged_span {
  const void* keys;
  const void* values;
  const void* key_scales;  // fp16, aligned to 2; null for raw rows.
  const void* value_scales;
  int64_t rows;  // 0: skipped.
  int32_t codec;
  int32_t reserved;  // 0
} kvtier_ragged_span;

// What a plan is made from.
typedef struct kvtier_ragged_shape {
  uint32_t struct_bytes;  // sizeof(kvtier_ragged_shape)
  uint32_t version;       // KVTIER_RAGGED_VERSION
  int32_t q_dtype;
  int32_t kv_dtype;  // Of raw rows.
  int64_t query_rows;
  int64_t group;  // Query heads per KV head.
  int64_t kv_heads;
  int64_t head_dim;                 // At most 512.
  int64_t window;                   // Each query sees so many rows, its own included; 0: all.
  float scale;                      // Of the logits before the softmax.
  int32_t multiprocessors;          // Of the device: how many pieces of work keep it busy.
  const kvtier_ragged_span* spans;  // Host: of all heads, head by head, in order.
  const int64_t* span_begin;        // Host: [kv_heads + 1] into spans.
} kvtier_ragged_shape;
// A head's rows are its spans one after the other; its last `query_rows` rows are the queries' own,
// so that query i sees all rows but those of the queries behind it.

typedef struct kvtier_ragged_sizes {
  uint32_t struct_bytes;  // sizeof(kvtier_ragged_sizes)
  uint32_t version;
  uint64_t plan_bytes;       // Of the plan, on the host and again on the device.
  uint64_t workspace_bytes;  // Device memory that a decode writes; not kept between calls.
} kvtier_ragged_sizes;

// What one decode reads and writes, in device memory.
typedef struct kvtier_ragged_io {
  uint32_t struct_bytes;  // sizeof(kvtier_ragged_io)
  uint32_t version;
  const void* q;    // [query_rows, kv_heads * group, head_dim] of q_dtype, aligned to 4
  void* out;        // the same; may not overlap q
  void* workspace;  // Aligned to 16. Two decodes at once need one each.
  uint64_t workspace_bytes;
  void* stream;  // cudaStream_t
} kvtier_ragged_io;

// KVTIER_RAGGED_VERSION of the library.
KVTIER_RAGGED_API uint32_t kvtier_ragged_version(void);

// What a code means; "CUDA error" for positive ones. Static memory.
KVTIER_RAGGED_API const char* kvtier_ragged_error(int code);

// Writes `sizes` and, unless `plan` is null, the plan: `plan_bytes` of host memory aligned to 16,
// of which `plan_capacity` are there.
KVTIER_RAGGED_API int kvtier_ragged_plan(const kvtier_ragged_shape* shape, void* plan,
                                         uint64_t plan_capacity, kvtier_ragged_sizes* sizes);

// Launches the attention. `device_plan` will hold the bytes of `plan` when the stream gets there,
// aligned to 16; the rows of its spans lie where the shape said. The caller has made the stream's
// device current.
KVTIER_RAGGED_API int kvtier_ragged_decode(const void* plan, const void* device_plan,
                                           const kvtier_ragged_io* io);

#if defined(__cplusplus)
}
#endif

#endif  // KVTIER_CUDA_KVTIER_RAGGED_DECODE_H_
