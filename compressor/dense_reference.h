// A plain dense decoder, the yardstick of kvtier-eval and of end-to-end tests: what the model
// answers with its whole, uncompressed cache. It shares no code with Backend, Forward, spans or
// packing (only the readers of the checkpoint's files), so that an error there cannot hide in both.
//
//   ASSIGN(auto dense, DenseReferenceDecoder::Create(folder, DType::kBf16));
//   RETURN_IF_ERROR(dense->Prefill(ids));                 // system prompt and context, once
//   ASSIGN(auto answer, dense->Answer(question_ids, 16)); // greedy; any number of questions
//
// Arithmetic: weights expanded to fp32, sums in fp32; keys (after RoPE) and values are rounded to
// `kv_dtype` and kept as fp32, so that a decoder over a compressed cache of that dtype and ratio 1
// differs from it by the order of sums only.
//
// Memory: fp32 weights, and per context token 2 * layers * kv_heads * head_dim * 4 bytes. A
// question appends its own rows behind the context's and drops them: nothing is copied. Threads:
// not thread-safe, runs on the calling thread alone.
#ifndef KVTIER_COMPRESSOR_DENSE_REFERENCE_H_
#define KVTIER_COMPRESSOR_DENSE_REFERENCE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/model_config.h"
#include "kvcache/geometry.h"

namespace kvtier {

class DenseReferenceDecoder {
 public:
  // Reads config.json and model.safetensors of `folder`; errors as Model::Load's.
  static absl::StatusOr<std::unique_ptr<DenseReferenceDecoder>> Create(const std::string& folder,
                                                                       DType kv_dtype);
  ~DenseReferenceDecoder();

  const ModelConfig& config() const { return config_; }
  int64_t context_length() const { return context_length_; }

  // Forgets what was there and reads `ids` (system prompt ++ context). INVALID_ARGUMENT: id out of
  // range, more tokens than the model has positions.
  absl::Status Prefill(std::span<const uint32_t> ids);

  // Appends `question`, then up to `count` tokens chosen greedily (the lowest id among the largest
  // logits), stopping early after one of `stop_ids` (which is part of the result). Leaves the
  // context as it was. INVALID_ARGUMENT as Prefill, or an empty question.
  absl::StatusOr<std::vector<uint32_t>> Answer(std::span<const uint32_t> question, int64_t count,
                                               std::span<const uint32_t> stop_ids = {});

  // Logits of every row of `tokens` appended to the context, [tokens.size(), vocabulary]; for
  // teacher forcing. Leaves the context as it was.
  absl::StatusOr<std::vector<float>> Logits(std::span<const uint32_t> tokens);

 private:
  struct Layer;
  DenseReferenceDecoder();
  absl::Status CheckIds(std::span<const uint32_t> ids) const;
  // Appends rows behind `length_` and leaves their last hidden states in `x_`.
  void Append(std::span<const uint32_t> ids);
  // Logits of rows [first, rows) of the last Append.
  std::vector<float> Head(int64_t first, int64_t rows);

  ModelConfig config_;
  DType kv_dtype_ = DType::kBf16;
  std::vector<float> frequencies_;  // [head_dim / 2]
  std::vector<float> embedding_;    // [vocabulary, hidden]
  std::vector<float> head_;         // [vocabulary, hidden]
  std::vector<float> final_norm_;   // [hidden]
  std::vector<Layer> layers_;
  int64_t context_length_ = 0;
  int64_t length_ = 0;    // Context and the current question's rows.
  std::vector<float> x_;  // [rows, hidden]
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_DENSE_REFERENCE_H_
