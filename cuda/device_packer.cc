#include "cuda/device_packer.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "compressor/host_backend.h"
#include "cuda/device_ranking.h"
#include "cuda/pack_rows.h"
#include "kvcache/row_codec.h"

namespace kvtier {
namespace {

static_assert(kPackAlignment == kSegmentAlignment);

class DeviceRankedRows final : public RankedRows {
 public:
  DeviceRankedRows(std::shared_ptr<Device> device, DeviceRanking ranking)
      : device_(std::move(device)), ranking_(std::move(ranking)) {}

  const BandCounts& counts() const override { return ranking_.counts; }

  absl::StatusOr<std::unique_ptr<SegmentFilling>> BeginSegment(const SegmentFill& fill,
                                                               SegmentBuilder& segment) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    auto filling = std::make_unique<Filling>(*this, fill, segment);
    const absl::Status begun = Begin(*filling);
    if (!begun.ok()) return begun;
    if (filling->blocks.empty()) return nullptr;
    return filling;
  }

 private:
  struct Filling final : SegmentFilling {
    Filling(DeviceRankedRows& ranked_rows, const SegmentFill& segment_fill,
            SegmentBuilder& segment_builder)
        : owner(ranked_rows), fill(segment_fill), segment(segment_builder) {}
    absl::Status Wait() override { return owner.Finish(*this); }

    DeviceRankedRows& owner;
    const SegmentFill fill;
    SegmentBuilder& segment;
    std::vector<PackBlock> blocks;  // Of heads that have rows.
    PackRefusals first_refused = {};
    DeviceMemory out;
    DeviceMemory refused;
    // Gone before the memory that they read.
    std::unique_ptr<PendingCopy> refused_copy;
    std::unique_ptr<PendingCopy> out_copy;
  };

  // Launches, and begins to copy what that will have written.
  absl::Status Begin(Filling& f) {
    const SegmentFill& fill = f.fill;
    const std::span<std::byte> bytes = f.segment.bytes();
    int64_t rows = 0;
    for (uint32_t head = 0; head < fill.geometry->kv_heads; ++head) {
      if (fill.RowsOf(counts(), head) == 0) continue;
      f.blocks.push_back(BlockOf(fill, head, rows, f.segment.head(head), bytes.data()));
      rows += f.blocks.back().rows;
    }
    if (rows == 0) return absl::OkStatus();
    // Before the launch, so that this does not wait for it; not a part of what is copied.
    if (!StoresPlainPositions(fill.codec)) {
      KVTIER_RETURN_IF_ERROR(ReadPositions(fill, f.blocks, f.segment));
    }
    KVTIER_ASSIGN_OR_RETURN(f.out, DeviceMemory::Allocate(device_, bytes.size()));
    KVTIER_ASSIGN_OR_RETURN(const DeviceMemory blocks,
                            DeviceMemory::Of(device_, std::span<const PackBlock>(f.blocks)));
    KVTIER_ASSIGN_OR_RETURN(f.refused, DeviceMemory::Allocate(device_, sizeof(PackRefusals)));
    KVTIER_RETURN_IF_ERROR(device_->Zero(f.refused.as<void>(), sizeof(PackRefusals)));
    // Room for a position code must be zero; elsewhere the kernel closes the gaps.
    if (!StoresPlainPositions(fill.codec)) {
      KVTIER_RETURN_IF_ERROR(device_->Zero(f.out.as<void>(), bytes.size()));
    }
    KVTIER_RETURN_IF_ERROR(device_->Check(
        LaunchPackRows({.keys = fill.layer.keys,
                        .values = fill.layer.values,
                        .type = static_cast<Element>(fill.layer.dtype),
                        .capacity = fill.layer.capacity,
                        .head_dim = fill.layer.head_dim,
                        .code = static_cast<RowCode>(fill.codec),
                        .tokens = ranking_.tokens.as<uint32_t>(),
                        .scores = ranking_.scores,
                        .protected_tokens = static_cast<int64_t>(fill.protected_tokens),
                        .blocks = blocks.as<PackBlock>(),
                        .block_count = static_cast<int64_t>(f.blocks.size()),
                        .rows = rows,
                        .out = f.out.as<std::byte>(),
                        .refused = f.refused.as<PackRefusals>()},
                       device_->stream()),
        "pack"));
    if (fill.codec != CodecId::kRaw) {
      KVTIER_ASSIGN_OR_RETURN(
          f.refused_copy,
          device_->BeginCopyOut(f.refused.as<void>(), &f.first_refused, sizeof(f.first_refused)));
    }
    KVTIER_ASSIGN_OR_RETURN(f.out_copy,
                            device_->BeginCopyOut(f.out.as<void>(), bytes.data(), bytes.size()));
    return absl::OkStatus();
  }

  absl::Status Finish(Filling& f) {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    if (f.refused_copy != nullptr) {
      KVTIER_RETURN_IF_ERROR(f.refused_copy->Wait());
      if (f.first_refused.key != 0 || f.first_refused.value != 0) {
        return NameRefusedRow(f.fill, f.blocks, f.first_refused);
      }
    }
    return f.out_copy->Wait();
  }

  // `to` are the head's arrays in the memory at `base`.
  PackBlock BlockOf(const SegmentFill& fill, uint32_t head, int64_t first_row,
                    const HeadRowsMut& to, const std::byte* base) const {
    const uint64_t row = uint64_t{fill.scored_layer} * counts().kv_heads + head;
    const auto offset = [base](const void* array) {
      return static_cast<const std::byte*>(array) - base;
    };
    PackBlock block;
    block.head = head;
    block.first_row = first_row;
    block.rows = fill.RowsOf(counts(), head);
    block.protected_rows = fill.band == 0 ? static_cast<int64_t>(fill.protected_tokens) : 0;
    block.first_token = ranking_.starts[row * counts().bands() + fill.band];
    block.first_score = static_cast<int64_t>(row * counts().tokens);
    block.positions = StoresPlainPositions(fill.codec) ? offset(to.positions.data()) : -1;
    block.log_scores = offset(to.log_scores.data());
    block.keys = offset(to.keys);
    block.values = offset(to.values);
    if (to.key_scales != nullptr) {
      block.key_scales = offset(to.key_scales);
      block.value_scales = offset(to.value_scales);
    }
    return block;
  }

  // Into tokens_, unless they are there: the bands and heads of a layer share one copy.
  absl::Status ReadTokens(uint32_t scored_layer) {
    if (tokens_layer_ == scored_layer) return absl::OkStatus();
    const uint64_t groups = uint64_t{counts().kv_heads} * counts().bands();
    const uint64_t first = scored_layer * groups;
    tokens_layer_.reset();
    tokens_begin_ = ranking_.starts[first];
    tokens_.resize(ranking_.starts[first + groups] - ranking_.starts[first]);
    KVTIER_RETURN_IF_ERROR(device_->CopyOut(ranking_.tokens.as<uint32_t>() + tokens_begin_,
                                            tokens_.data(), tokens_.size() * sizeof(uint32_t)));
    tokens_layer_ = scored_layer;
    return absl::OkStatus();
  }

  // Of row `i` of a block. REQUIRES: ReadTokens of its layer.
  uint32_t PositionOf(const SegmentFill& fill, const PackBlock& block, int64_t i) const {
    if (i < block.protected_rows) return static_cast<uint32_t>(i);
    return static_cast<uint32_t>(fill.protected_tokens) +
           tokens_[block.first_token - tokens_begin_ + i - block.protected_rows];
  }

  // Positions that the builder encodes when it is sealed.
  absl::Status ReadPositions(const SegmentFill& fill, const std::vector<PackBlock>& blocks,
                             SegmentBuilder& segment) {
    KVTIER_RETURN_IF_ERROR(ReadTokens(fill.scored_layer));
    for (const PackBlock& block : blocks) {
      const std::span<uint32_t> to = segment.head(static_cast<uint32_t>(block.head)).positions;
      for (int64_t i = 0; i < block.rows; ++i) to[i] = PositionOf(fill, block, i);
    }
    return absl::OkStatus();
  }

  // The row that packing on the host would name, the keys of a head before its values, coded again
  // on the host, which says what is wrong with it.
  absl::Status NameRefusedRow(const SegmentFill& fill, const std::vector<PackBlock>& blocks,
                              const PackRefusals& refused) {
    const auto block_of = [&](int64_t row) {
      return std::find_if(blocks.rbegin(), blocks.rend(),
                          [row](const PackBlock& b) { return b.first_row <= row; });
    };
    const bool of_key =
        refused.key != 0 &&
        (refused.value == 0 || block_of(~refused.key)->head <= block_of(~refused.value)->head);
    const int64_t row = ~(of_key ? refused.key : refused.value);
    const PackBlock& block = *block_of(row);
    const int64_t i = row - block.first_row;
    KVTIER_RETURN_IF_ERROR(ReadTokens(fill.scored_layer));
    const RowCodec* codec = FindRowCodec(fill.codec);
    const int64_t row_bytes = fill.layer.head_dim * DTypeBytes(fill.layer.dtype);
    const int64_t at = (block.head * fill.layer.capacity + PositionOf(fill, block, i)) * row_bytes;
    std::vector<std::byte> stored(row_bytes);
    std::vector<float> elements(fill.layer.head_dim);
    std::vector<std::byte> codes(codec->code_bytes(fill.geometry->head_dim));
    std::vector<std::byte> scales(codec->scale_bytes());
    const void* from = of_key ? fill.layer.keys : fill.layer.values;
    KVTIER_RETURN_IF_ERROR(
        device_->CopyOut(static_cast<const std::byte*>(from) + at, stored.data(), stored.size()));
    LoadFloats(stored.data(), fill.layer.dtype, elements);
    const absl::Status status = codec->EncodeRow(elements, codes.data(), scales.data());
    const absl::string_view what = of_key ? "keys" : "values";
    if (status.ok()) {
      return absl::InternalError(absl::StrCat(device_->name(), ": pack: refuses ", what, " row ", i,
                                              " of layer ", fill.model_layer, " head ", block.head,
                                              " band ", fill.band, ", which the codec holds"));
    }
    return absl::Status(status.code(),
                        absl::StrCat("packing: codec ", CodecName(fill.codec), ": layer ",
                                     fill.model_layer, " head ", block.head, " band ", fill.band,
                                     ": ", what, ": row ", i, ": ", status.message()));
  }

  const std::shared_ptr<Device> device_;
  const DeviceRanking ranking_;
  // What ReadTokens copied: `ranking_.tokens` of one scored layer, from tokens_begin_ on.
  std::optional<uint32_t> tokens_layer_;
  int64_t tokens_begin_ = 0;
  std::vector<uint32_t> tokens_;
};

class DevicePacker final : public Packer {
 public:
  explicit DevicePacker(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  absl::StatusOr<std::unique_ptr<RankedRows>> Rank(const RankRequest& request) override {
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    KVTIER_ASSIGN_OR_RETURN(DeviceRanking ranking, RankOnDevice(request, device_));
    return std::make_unique<DeviceRankedRows>(device_, std::move(ranking));
  }
  PairBytes pair_bytes() const override {
    return {.ranking = kRankingPairBytes, .ranked = kRankedPairBytes};
  }

 private:
  const std::shared_ptr<Device> device_;
};

}  // namespace

std::unique_ptr<Packer> MakeDevicePacker(std::shared_ptr<Device> device) {
  return std::make_unique<DevicePacker>(std::move(device));
}

}  // namespace kvtier
