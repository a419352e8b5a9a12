// The plain twin of re-banding: every row as a tuple of what the order is made of, all sorted.
#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "base/half.h"
#include "base/status_macros.h"
#include "compressor/rebanding.h"
#include "kvcache/segment.h"

namespace kvtier {

absl::StatusOr<std::vector<uint8_t>> RebandReference(const StoredBands& stored,
                                                     const BandEdges& edges) {
  const Manifest& m = *stored.manifest;
  const bool each_head = m.selection() == SelectionRule::kPerHead;
  const uint64_t heads = uint64_t{m.geometry.scored_layer_count()} * m.geometry.kv_heads;
  // Stored band, not a first token, falling score, layer, head, position; then where the pair is.
  using Place = std::tuple<uint32_t, bool, float, uint32_t, uint32_t, uint32_t>;
  std::map<uint64_t, std::vector<std::pair<Place, uint64_t>>> orders;  // One, or one per head.
  for (uint32_t band = 0; band < stored.band_count; ++band) {
    uint64_t scored_head = 0;
    for (uint32_t layer = 0; layer < m.geometry.layer_count(); ++layer) {
      if (m.geometry.layers[layer] != LayerKind::kGlobal) continue;
      for (uint32_t head = 0; head < m.geometry.kv_heads; ++head, ++scored_head) {
        KVTIER_ASSIGN_OR_RETURN(
            const HeadRows rows,
            ReadHead(m.geometry, m.segment(BandIndex(band), LayerIndex(layer)),
                     {0, m.geometry.kv_heads},
                     stored.segment(BandIndex(band), LayerIndex(layer)).bytes(), head));
        KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> positions, ReadPositions(rows));
        for (uint32_t row = 0; row < rows.rows; ++row) {
          const uint32_t position = positions[row];
          if (position < m.protected_tokens()) continue;
          const bool first = PutsFirstTokenFirst(m.selection()) && position == 0;
          const float score = static_cast<float>(rows.log_scores[row]);
          orders[each_head ? scored_head : 0].push_back(
              {{band, !first, -score, layer, head, position},
               scored_head * m.ranked_tokens() + position - m.protected_tokens()});
        }
      }
    }
  }
  std::vector<uint8_t> bands(m.scored_pairs(), static_cast<uint8_t>(edges.size()));
  for (auto& [head, order] : orders) {
    std::sort(order.begin(), order.end());
    for (uint32_t b = edges.size(); b-- > 0;) {  // Lower bands overwrite higher ones.
      const uint64_t end = m.RankEnd(edges.edge(BandIndex(b))) / (each_head ? heads : 1);
      for (uint64_t rank = 0; rank < std::min<uint64_t>(end, order.size()); ++rank) {
        bands[order[rank].second] = static_cast<uint8_t>(b);
      }
    }
  }
  return bands;
}

}  // namespace kvtier
