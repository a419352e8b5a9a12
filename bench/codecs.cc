// What the row codecs cost and save, measured on the cache of a real document: the figures of
// docs/adr/0008-lossless-codec.md and of the codec table in docs/performance.md.
//
//   kvtier-codecs MODEL DOCUMENT QUESTIONS
//
// Prints, per codec, the bytes and the exact answers at ratio 0.3 and the speed of encoding and
// decoding; the same of a lossless split into exponents (zstd) and the rest; and the time of one
// layer of decode attention over 32K tokens at ratio 0.3 in Llama-8B's shape.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <zstd.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "bench/evaluation.h"
#include "bench/questions.h"
#include "compressor/cpu_backend.h"
#include "compressor/cpu_kernels.h"
#include "kvcache/row_codec.h"
#include "kvcache/segment.h"

namespace kvtier {
namespace {

constexpr CodecId kCodecs[] = {CodecId::kRaw, CodecId::kInt8, CodecId::kInt4};

// Processor time of all threads: says more than the clock where others share the cores.
double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of one call: the median of five.
template <typename Call>
double Time(Call call) {
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    const double begin = Seconds();
    call();
    times.push_back(Seconds() - begin);
  }
  std::nth_element(times.begin(), times.begin() + 2, times.end());
  return times[2];
}

absl::StatusOr<std::string> ReadWhole(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// The same rows and bands in another codec.
absl::StatusOr<CompressedObject> Encode(const CompressedObject& raw, CodecId codec) {
  Manifest m = *raw.manifest;
  m.recipe = codec == CodecId::kRaw ? "kvzip/1" : absl::StrCat("kvzip/1;codec=", CodecName(codec));
  const HeadRange all{0, m.geometry.kv_heads};
  CompressedObject object;
  for (uint32_t b = 0; b < m.bands.size(); ++b) {
    for (uint32_t l = 0; l < m.geometry.layer_count(); ++l) {
      SegmentEntry& entry = m.bands[b].layers[l];
      std::vector<uint32_t> counts;
      for (const HeadEntry& head : entry.heads) counts.push_back(head.rows);
      KVTIER_ASSIGN_OR_RETURN(SegmentBuilder builder,
                              SegmentBuilder::Create(m.geometry, codec, counts));
      for (uint32_t h = 0; h < all.end; ++h) {
        KVTIER_ASSIGN_OR_RETURN(
            const HeadRows from,
            ReadHead(m.geometry, entry, all, raw.segment(BandIndex(b), LayerIndex(l)).bytes(), h));
        if (from.rows == 0) continue;
        const HeadRowsMut to = builder.head(h);
        std::copy(from.positions.begin(), from.positions.end(), to.positions.begin());
        std::copy(from.log_scores.begin(), from.log_scores.end(), to.log_scores.begin());
        KVTIER_RETURN_IF_ERROR(
            EncodeHeadRows(m.geometry, codec, from.rows, from.keys, from.values, to));
      }
      SegmentBuilder::Sealed sealed = std::move(builder).Seal();
      entry = std::move(sealed.entry);
      object.segments.push_back(SegmentRef::Own(std::move(sealed.bytes)));
    }
  }
  KVTIER_RETURN_IF_ERROR(m.Validate());
  object.manifest = std::make_shared<const Manifest>(std::move(m));
  return object;
}

// Keys and values of an object of raw bf16 rows, one behind the other.
absl::StatusOr<std::vector<uint16_t>> AllElements(const CompressedObject& raw) {
  const Manifest& m = *raw.manifest;
  std::vector<uint16_t> elements;
  for (uint32_t b = 0; b < m.bands.size(); ++b) {
    for (uint32_t l = 0; l < m.geometry.layer_count(); ++l) {
      for (uint32_t h = 0; h < m.geometry.kv_heads; ++h) {
        KVTIER_ASSIGN_OR_RETURN(
            const HeadRows rows,
            ReadHead(m.geometry, m.segment(BandIndex(b), LayerIndex(l)), {0, m.geometry.kv_heads},
                     raw.segment(BandIndex(b), LayerIndex(l)).bytes(), h));
        for (const std::byte* array : {rows.keys, rows.values}) {
          const auto* begin = reinterpret_cast<const uint16_t*>(array);
          elements.insert(elements.end(), begin, begin + uint64_t{rows.rows} * m.geometry.head_dim);
        }
      }
    }
  }
  return elements;
}

void PrintCodecSpeed(const Geometry& geometry, const std::vector<uint16_t>& elements) {
  const auto rows = static_cast<uint32_t>(elements.size() / geometry.head_dim);
  const double raw_bytes = static_cast<double>(elements.size()) * 2;
  std::vector<float> decoded(elements.size());
  std::printf("\n%-8s %12s %14s %20s   one thread, GB of bf16 rows per second\n", "codec", "encode",
              "decode", "decode by kernels");
  for (const CodecId id : {CodecId::kInt8, CodecId::kInt4}) {
    const RowCodec& codec = *FindRowCodec(id);
    std::vector<std::byte> codes(rows * codec.code_bytes(geometry.head_dim));
    std::vector<std::byte> scales(rows * codec.scale_bytes());
    const double encode = Time([&] {
      KVTIER_CHECK_OK(EncodeRows(codec, DType::kBf16,
                                 reinterpret_cast<const std::byte*>(elements.data()), rows,
                                 geometry.head_dim, codes.data(), scales.data()));
    });
    const double decode = Time([&] {
      for (uint32_t row = 0; row < rows; ++row) {
        codec.DecodeRow(
            codes.data() + row * codec.code_bytes(geometry.head_dim),
            scales.data() + row * codec.scale_bytes(),
            std::span(decoded).subspan(uint64_t{row} * geometry.head_dim, geometry.head_dim));
      }
    });
    const double fast = Time([&] {
      BestCpuKernels().decode_rows(codes.data(), scales.data(),
                                   id == CodecId::kInt8 ? KvCode::kInt8 : KvCode::kInt4, rows,
                                   geometry.head_dim, decoded.data());
    });
    std::printf("%-8s %12.3f %14.3f %20.3f\n", std::string(CodecName(id)).c_str(),
                raw_bytes / encode / 1e9, raw_bytes / decode / 1e9, raw_bytes / fast / 1e9);
  }
}

// Exponents apart from signs and mantissas; zstd on the exponents.
void PrintLossless(const std::vector<uint16_t>& elements) {
  const size_t count = elements.size();
  std::vector<uint8_t> exponents(count);
  std::vector<uint8_t> rest(count);
  std::vector<uint16_t> joined(count);
  std::vector<uint8_t> packed(ZSTD_compressBound(count));
  std::printf("\nlossless: exponents by zstd, the rest as it is; one thread\n%-8s %10s %18s %18s\n",
              "level", "smaller", "encode GB/s", "decode GB/s");
  for (const int level : {-1, 1, 3, 9}) {
    size_t packed_bytes = 0;
    const double encode = Time([&] {
      for (size_t i = 0; i < count; ++i) {
        exponents[i] = static_cast<uint8_t>(elements[i] >> 7);
        rest[i] = static_cast<uint8_t>((elements[i] & 0x7F) | (elements[i] >> 15 << 7));
      }
      packed_bytes = ZSTD_compress(packed.data(), packed.size(), exponents.data(), count, level);
      KVTIER_CHECK(ZSTD_isError(packed_bytes) == 0);
    });
    const double decode = Time([&] {
      KVTIER_CHECK_EQ(ZSTD_decompress(exponents.data(), count, packed.data(), packed_bytes), count);
      for (size_t i = 0; i < count; ++i) {
        joined[i] =
            static_cast<uint16_t>((rest[i] & 0x7F) | exponents[i] << 7 | rest[i] >> 7 << 15);
      }
    });
    KVTIER_CHECK(joined == elements);
    const double bytes = 2.0 * static_cast<double>(count);
    std::printf("%-8d %9.3fx %18.3f %18.3f\n", level,
                bytes / static_cast<double>(count + packed_bytes), bytes / encode / 1e9,
                bytes / decode / 1e9);
  }
}

// One token's attention in one layer of Llama-8B's shape, 32K tokens at ratio 0.3, over four layers
// in turn, so that caches do not hold them.
void PrintAttention(Backend& backend) {
  constexpr uint32_t kHeads = 8;
  constexpr uint32_t kGroup = 4;
  constexpr uint32_t kDim = 128;
  constexpr uint32_t kRows = 9830;
  constexpr int kLayers = 4;
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<bfloat16> rows(uint64_t{kRows} * kDim);
  for (bfloat16& x : rows) x = bfloat16(normal(random));
  const auto* row_bytes = reinterpret_cast<const std::byte*>(rows.data());
  Geometry geometry;
  geometry.kv_heads = kHeads;
  geometry.head_dim = kDim;
  geometry.layers = {LayerKind::kGlobal};
  const std::vector<uint32_t> counts(kHeads, kRows);
  const Tensor q = backend.Allocate(DType::kF32, 1, kHeads * kGroup * kDim).value();
  const Tensor out = backend.Allocate(DType::kF32, 1, kHeads * kGroup * kDim).value();
  std::generate_n(static_cast<float*>(q.data()), q.cols(), [&] { return normal(random); });
  const Tensor tail = backend.Allocate(DType::kBf16, kHeads, kDim).value();
  std::fill_n(static_cast<uint16_t*>(tail.data()), kHeads * kDim, uint16_t{0});
  std::printf(
      "\ndecode attention, one layer of 8 x 4 heads, %u rows per KV head\n%-8s %12s %12s %12s\n",
      kRows, "codec", "ms", "CPU ms", "GB/s read");
  for (const CodecId codec : kCodecs) {
    std::vector<AlignedBytes> memory;
    std::vector<std::vector<RowSpan>> spans(kLayers * kHeads);
    for (int layer = 0; layer < kLayers; ++layer) {
      SegmentBuilder builder = SegmentBuilder::Create(geometry, codec, counts).value();
      for (uint32_t h = 0; h < kHeads; ++h) {
        const HeadRowsMut to = builder.head(h);
        for (uint32_t i = 0; i < kRows; ++i) to.positions[i] = i;
        KVTIER_CHECK_OK(EncodeHeadRows(geometry, codec, kRows, row_bytes, row_bytes, to));
      }
      SegmentBuilder::Sealed sealed = std::move(builder).Seal();
      memory.push_back(std::move(sealed.bytes));
      for (uint32_t h = 0; h < kHeads; ++h) {
        const HeadRows head =
            ReadHead(geometry, sealed.entry, {0, kHeads}, memory.back().span(), h).value();
        spans[static_cast<size_t>(layer) * kHeads + h].push_back(
            {.keys = head.keys,
             .values = head.values,
             .rows = head.rows,
             .codec = codec,
             .key_scales = head.key_scales,
             .value_scales = head.value_scales});
      }
    }
    double cpu_seconds = 1e9;  // The best of all calls.
    const double seconds = Time([&] {
      const double cpu_begin = CpuSeconds();
      for (int layer = 0; layer < kLayers; ++layer) {
        const HeadSpans views(spans.begin() + layer * static_cast<int>(kHeads),
                              spans.begin() + (layer + 1) * static_cast<int>(kHeads));
        const KvLayerView own{.keys = tail.data(),
                              .values = tail.data(),
                              .dtype = DType::kBf16,
                              .kv_heads = kHeads,
                              .capacity = 1,
                              .head_dim = kDim};
        KVTIER_CHECK_OK(backend.Attention({.q = q,
                                           .spans = &views,
                                           .span_dtype = DType::kBf16,
                                           .tail = own,
                                           .tail_rows = 1,
                                           .scale = 0.0884f,
                                           .out = out}));
      }
      cpu_seconds = std::min(cpu_seconds, CpuSeconds() - cpu_begin);
    });
    const double read =
        2.0 * kLayers * kHeads * kRows *
        static_cast<double>(EncodedRowBytes(geometry, codec) + EncodedScaleBytes(codec));
    std::printf("%-8s %12.3f %12.3f %12.2f\n", std::string(CodecName(codec)).c_str(),
                1e3 * seconds / kLayers, 1e3 * cpu_seconds / kLayers, read / seconds / 1e9);
  }
}

absl::Status Run(char** argv) {
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
  const std::unique_ptr<Backend> backend = MakeCpuBackend({.threads = threads});
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(argv[1], *backend));
  KVTIER_ASSIGN_OR_RETURN(const std::string text, ReadWhole(argv[2]));
  KVTIER_ASSIGN_OR_RETURN(const std::string json, ReadWhole(argv[3]));
  KVTIER_ASSIGN_OR_RETURN(const QuestionSet questions, QuestionsFromJson(json));
  if (!model->profile().byte_vocabulary.has_value()) {
    return absl::InvalidArgumentError("the prompt profile declares no byte vocabulary");
  }
  const std::vector<uint32_t> context = model->profile().byte_vocabulary->Encode(text);
  KVTIER_ASSIGN_OR_RETURN(const auto evaluation, Evaluation::Create(*model, context));
  KVTIER_ASSIGN_OR_RETURN(const ScoreTable scores, evaluation->KvzipScores());
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject raw, evaluation->Pack(scores));
  KVTIER_ASSIGN_OR_RETURN(const Ratio ratio, Ratio::FromDouble(0.3));
  std::printf("%-8s %16s %22s\n", "codec", "bytes at 0.3", "exact answers at 0.3");
  for (const CodecId codec : kCodecs) {
    KVTIER_ASSIGN_OR_RETURN(const CompressedObject object, Encode(raw, codec));
    KVTIER_ASSIGN_OR_RETURN(
        const ExactCount count,
        evaluation->CountExact(object, ratio, questions.questions, threads, [] {}));
    std::printf("%-8s %16llu %15u of %zu\n", std::string(CodecName(codec)).c_str(),
                static_cast<unsigned long long>(count.bytes), count.exact,
                questions.questions.size());
    std::fflush(stdout);
  }
  KVTIER_ASSIGN_OR_RETURN(const std::vector<uint16_t> elements, AllElements(raw));
  PrintCodecSpeed(raw.manifest->geometry, elements);
  PrintLossless(elements);
  PrintAttention(*backend);
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvtier

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: kvtier-codecs MODEL DOCUMENT QUESTIONS\n");
    return 2;
  }
  const absl::Status status = kvtier::Run(argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "kvtier-codecs: %s\n", std::string(status.message()).c_str());
  return 1;
}
