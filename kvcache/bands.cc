#include "kvcache/bands.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {

absl::StatusOr<Ratio> Ratio::FromDouble(double value) {
  // Also refuses NaN. The bound keeps the conversion below inside long long.
  if (!(value > 0 && value <= 2)) {
    return absl::InvalidArgumentError(absl::StrCat("ratio: ", value, " is not in (0, 1]"));
  }
  // One rounding of the decimal that the caller wrote: 0.3 is 0.299999... in binary, and times a
  // million it is again nearest to 300000.
  const long long millionths = std::llround(value * kOne);
  if (millionths <= 0 || value > 1) {
    return absl::InvalidArgumentError(absl::StrCat("ratio: ", value, " is not in (0, 1]"));
  }
  return Ratio(static_cast<uint32_t>(millionths));
}

absl::StatusOr<Ratio> Ratio::FromMillionths(uint32_t millionths) {
  if (millionths == 0 || millionths > kOne) {
    return absl::InvalidArgumentError(
        absl::StrCat("ratio: ", millionths, " millionths are not in (0, ", kOne, "]"));
  }
  return Ratio(millionths);
}

std::string Ratio::ToString() const {
  if (millionths_ == kOne) return "1";
  std::string digits = absl::StrCat(kOne + millionths_);  // A leading 1 keeps the zeros.
  digits.erase(digits.find_last_not_of('0') + 1);
  return absl::StrCat("0.", digits.substr(1));
}

uint64_t Ratio::Of(uint64_t count) const {
  // 2^64 * 10^6 needs 84 bits.
  return static_cast<uint64_t>(static_cast<unsigned __int128>(count) * millionths_ / kOne);
}

uint64_t Ratio::RoundedUpOf(uint64_t count) const {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(count) * millionths_ + kOne - 1) /
                               kOne);
}

BandEdges BandEdges::Default() {
  std::vector<Ratio> edges;
  for (uint32_t percent : {10, 20, 30, 40, 60, 100}) {
    edges.push_back(Ratio::FromMillionths(percent * (Ratio::kOne / 100)).value());
  }
  return BandEdges(std::move(edges));
}

absl::StatusOr<BandEdges> BandEdges::CreateTruncated(std::span<const Ratio> edges) {
  if (edges.empty()) return absl::InvalidArgumentError("band edges: none");
  if (edges.size() > limits::kBandsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "band edges: ", edges.size(), " bands, at most kBandsMax = ", limits::kBandsMax));
  }
  for (size_t band = 1; band < edges.size(); ++band) {
    if (edges[band - 1] >= edges[band]) {
      return absl::InvalidArgumentError(absl::StrCat("band edges: ", edges[band].ToString(),
                                                     " does not lie above ",
                                                     edges[band - 1].ToString()));
    }
  }
  return BandEdges(std::vector<Ratio>(edges.begin(), edges.end()));
}

absl::StatusOr<BandEdges> BandEdges::Create(std::span<const Ratio> edges) {
  KVTIER_ASSIGN_OR_RETURN(BandEdges checked, CreateTruncated(edges));
  if (!checked.whole()) {
    return absl::InvalidArgumentError(
        absl::StrCat("band edges: the last is ", checked.last().ToString(), ", not 1"));
  }
  return checked;
}

absl::StatusOr<BandEdges> BandEdges::ParseTruncated(absl::string_view text) {
  std::vector<Ratio> edges;
  for (absl::string_view piece : absl::StrSplit(text, ',')) {
    double value = 0;
    if (!absl::SimpleAtod(piece, &value)) {
      return absl::InvalidArgumentError(absl::StrCat("band edges: \"", piece, "\" is no number"));
    }
    KVTIER_ASSIGN_OR_RETURN(const Ratio edge, Ratio::FromDouble(value));
    edges.push_back(edge);
  }
  return CreateTruncated(edges);
}

absl::StatusOr<BandEdges> BandEdges::Parse(absl::string_view text) {
  KVTIER_ASSIGN_OR_RETURN(const BandEdges edges, ParseTruncated(text));
  return Create(edges.edges());
}

BandIndex BandEdges::BandOfRank(uint64_t rank, uint64_t pairs) const {
  KVTIER_CHECK(rank < last().Of(pairs));
  const auto band = std::partition_point(edges_.begin(), edges_.end(),
                                         [&](Ratio edge) { return edge.Of(pairs) <= rank; });
  return BandIndex(static_cast<uint32_t>(band - edges_.begin()));
}

absl::StatusOr<uint32_t> ChooseBands(std::span<const Ratio> edges, uint32_t resident_bands,
                                     Ratio ratio, Ratio min_ratio) {
  if (min_ratio > ratio) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_ratio ", min_ratio.ToString(), " lies above ratio ", ratio.ToString()));
  }
  if (resident_bands > edges.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(resident_bands, " resident bands, but only ", edges.size(), " edges"));
  }
  const auto resident = edges.first(resident_bands);
  const auto enough = std::lower_bound(resident.begin(), resident.end(), ratio);
  if (enough != resident.end()) return static_cast<uint32_t>(enough - resident.begin()) + 1;
  if (!resident.empty() && resident.back() >= min_ratio) return resident_bands;
  return absl::NotFoundError("");  // A miss: no message, no allocation.
}

}  // namespace kvtier
