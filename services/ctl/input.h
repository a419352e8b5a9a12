// Where token ids come from: files of ids for any model, text where the model's vocabulary is
// bytes.
#ifndef KVTIER_SERVICES_CTL_INPUT_H_
#define KVTIER_SERVICES_CTL_INPUT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compressor/prompt_profile.h"
#include "compressor/token_file.h"

namespace kvtier::ctl {

// INVALID_ARGUMENT naming the file: unreadable, or larger than `bytes_max`.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max);
absl::Status WriteFile(const std::string& path, absl::string_view bytes);

using kvtier::ReadTokenIds;

// "2,128009" as ids, none for "". INVALID_ARGUMENT naming `flag`: what is no id below `vocabulary`,
// or more than `ids_max` of them.
absl::StatusOr<std::vector<uint32_t>> ParseIdList(absl::string_view text, absl::string_view flag,
                                                  uint64_t vocabulary, size_t ids_max);

// Text as ids. INVALID_ARGUMENT with the flag to use instead when the model has no byte vocabulary.
absl::StatusOr<std::vector<uint32_t>> EncodeText(absl::string_view text,
                                                 const std::optional<ByteVocabulary>& vocabulary,
                                                 absl::string_view model,
                                                 absl::string_view flag_for_ids);

}  // namespace kvtier::ctl

#endif  // KVTIER_SERVICES_CTL_INPUT_H_
