// Writes safetensors files: results that other programs read (scores, head scores, exported rows)
// and checkpoints of tests.
#ifndef KVTIER_COMPRESSOR_SAFETENSORS_WRITER_H_
#define KVTIER_COMPRESSOR_SAFETENSORS_WRITER_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "compressor/safetensors.h"

namespace kvtier {

// Tensors lie in order of their names, the data starts 8-byte aligned. The file appears whole or
// not at all, also after a power loss (base/whole_file.h). `metadata` becomes the header's
// __metadata__; values are UTF-8.
// INVALID_ARGUMENT: an entry whose bytes do not fit its dtype and shape (named).
// UNAVAILABLE: the file system refused, as WholeFile.
absl::Status WriteSafetensors(const std::string& path,
                              const std::map<std::string, SafetensorsEntry>& entries,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_SAFETENSORS_WRITER_H_
