// What tests receive fetches with: one that compares with an object at once, one that keeps.
#ifndef KVTIER_TESTS_TESTING_SEGMENT_SINKS_H_
#define KVTIER_TESTS_TESTING_SEGMENT_SINKS_H_

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kvcache/transport.h"
#include "tests/testing/test_object.h"

namespace kvtier {

// INTERNAL for anything but the whole of `object`, byte for byte.
class ComparingSink final : public SegmentSink {
 public:
  explicit ComparingSink(const CompressedObject& object) : object_(object) {}
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    if (*manifest != *object_.manifest) return absl::InternalError("another manifest");
    if (band_count != manifest->bands.size()) return absl::InternalError("bands are missing");
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override {
    return std::ranges::equal(bytes.bytes(), object_.segment(band, layer).bytes())
               ? absl::OkStatus()
               : absl::InternalError("other bytes");
  }

 private:
  const CompressedObject& object_;
};

// Keeps what it gets, and with it whatever holds the bytes.
class KeepingSink final : public SegmentSink {
 public:
  struct Segment {
    BandIndex band;
    LayerIndex layer;
    SegmentRef bytes;
  };
  absl::Status OnManifest(std::shared_ptr<const Manifest>, uint32_t) override {
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override {
    segments.push_back({band, layer, std::move(bytes)});
    return absl::OkStatus();
  }
  // Whether all that came is of `object`, byte for byte.
  bool IsPartOf(const CompressedObject& object) const {
    return std::ranges::all_of(segments, [&](const Segment& segment) {
      return std::ranges::equal(segment.bytes.bytes(),
                                object.segment(segment.band, segment.layer).bytes());
    });
  }
  // And nothing of it is missing.
  bool Equals(const CompressedObject& object) const {
    return segments.size() == object.segments.size() && IsPartOf(object);
  }

  std::vector<Segment> segments;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_SEGMENT_SINKS_H_
