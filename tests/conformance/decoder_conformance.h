// Decoding on a device: in fp32 token for token what the CPU says, over objects of every codec and
// several prefixes of bands.
#ifndef KVTIER_TESTS_CONFORMANCE_DECODER_CONFORMANCE_H_
#define KVTIER_TESTS_CONFORMANCE_DECODER_CONFORMANCE_H_

#include <memory>

#include "compressor/backend.h"

namespace kvtier {

// `device` computes in fp32 in memory of its own.
void ExpectDecodesAsTheCpu(std::unique_ptr<Backend> device);

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_DECODER_CONFORMANCE_H_
