// The strong types of kvcache/ids.h: each line marked at its end must not compile (check.py).
#include "kvcache/ids.h"

namespace kvtier {

void Read(BandIndex band, LayerIndex layer);

void Mix(LayerIndex layer, BandIndex band, Key key, Digest digest, UploadId upload) {
  Read(band, layer);
  Read(layer, band);  // error
  Read(0, 1);         // error
  (void)(layer == LayerIndex(1));
  (void)(layer == band);         // error
  (void)(layer + 1);             // error
  const uint32_t number = band;  // error
  LayerIndex from_band(band);    // error
  (void)(key == Key());
  (void)(key == digest);    // error
  key = digest;             // error
  Key from_upload(upload);  // error
  SegmentId id{.key = key};
  id.key = upload;                     // error
  id.tenant = TenantId("no factory");  // error
}

}  // namespace kvtier
