// Kernels that touch each element once or twice: bandwidth-bound.
//
// Layout: rows of `cols` elements, row-major, any element type unless said. Requirements: pointers
// to device memory, aligned to their element. Launch: one thread per element in steps of the whole
// grid (RMS norm: one block per row). Launchers allocate nothing and never wait; no rows, no
// launch. They return what the launch said (cuda/simt.h).
#ifndef KVTIER_CUDA_ELEMENTWISE_H_
#define KVTIER_CUDA_ELEMENTWISE_H_

#include <cstdint>

#include "cuda/math/element.h"
#include "cuda/simt.h"

namespace kvtier {

// y[i] = table[ids[i]] * scale. REQUIRES: each id is a row of the table.
struct EmbedParams {
  const uint32_t* ids = nullptr;  // [rows]
  const void* table = nullptr;    // [vocabulary, cols]
  Element table_type = Element::kF32;
  float scale = 1;
  void* y = nullptr;  // [rows, cols]
  Element type = Element::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
};
DeviceError LaunchEmbed(const EmbedParams& params, DeviceStream stream);

// y = x / sqrt(mean(x^2) + epsilon) * weight, sums in fp32. y may be x.
struct RmsNormParams {
  const void* x = nullptr;        // [rows, cols]
  const float* weight = nullptr;  // [cols]
  float epsilon = 0;
  void* y = nullptr;  // [rows, cols]
  Element type = Element::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
};
DeviceError LaunchRmsNorm(const RmsNormParams& params, DeviceStream stream);

// x += y, where y has as many rows or one.
struct AddParams {
  void* x = nullptr;        // [rows, cols]
  const void* y = nullptr;  // [rows or 1, cols]
  bool one_row = false;
  Element type = Element::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
};
DeviceError LaunchAdd(const AddParams& params, DeviceStream stream);

// y = activation(gate) * up. y may be either.
struct GateMulParams {
  const void* gate = nullptr;
  const void* up = nullptr;
  void* y = nullptr;
  bool gelu = false;  // Otherwise SiLU.
  Element type = Element::kF32;
  int64_t count = 0;
};
DeviceError LaunchGateMul(const GateMulParams& params, DeviceStream stream);

inline constexpr int kRopePairsMax = 256;

// Rotates each head of each row in place; row i has position first_position + i.
struct RopeParams {
  void* x = nullptr;  // [rows, heads * 2 * pairs]
  Element type = Element::kF32;
  int64_t rows = 0;
  int64_t heads = 0;
  int pairs = 0;
  int64_t first_position = 0;
  const int64_t* position_at = nullptr;  // Device memory, read instead where it is not null.
  float scaling = 1;
  float frequencies[kRopePairsMax] = {};  // [pairs]; travels with the launch.
};
DeviceError LaunchRope(const RopeParams& params, DeviceStream stream);

// Rows of k and v to rows [at, at + rows) of each head of a layer.
struct AppendKvParams {
  const void* k = nullptr;  // [rows, kv_heads * head_dim]
  const void* v = nullptr;
  Element type = Element::kF32;  // Of k and v.
  void* keys = nullptr;          // [kv_heads, capacity, head_dim]
  void* values = nullptr;
  Element layer_type = Element::kBf16;
  int64_t rows = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t capacity = 0;
  int64_t at = 0;
  const int64_t* row_at = nullptr;  // Device memory, read instead of `at` where it is not null.
};
DeviceError LaunchAppendKv(const AppendKvParams& params, DeviceStream stream);

// Row positions[i] of one head to row i.
struct GatherRowsParams {
  const void* keys = nullptr;  // [capacity, row_bytes]: the head's
  const void* values = nullptr;
  const uint32_t* positions = nullptr;  // [rows]
  void* keys_out = nullptr;             // [rows, row_bytes]
  void* values_out = nullptr;
  int64_t rows = 0;
  int64_t row_bytes = 0;  // Even.
};
DeviceError LaunchGatherRows(const GatherRowsParams& params, DeviceStream stream);

// to[i] = from[i], rounded to nearest even.
struct ConvertParams {
  const void* from = nullptr;
  Element from_type = Element::kF32;
  void* to = nullptr;
  Element to_type = Element::kF32;
  int64_t count = 0;
};
DeviceError LaunchConvert(const ConvertParams& params, DeviceStream stream);

}  // namespace kvtier

#endif  // KVTIER_CUDA_ELEMENTWISE_H_
