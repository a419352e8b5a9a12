// kvtierctl compress: document in, stored object out, progress meanwhile.

#include <cstdio>
#include <optional>

#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "services/client.h"
#include "services/ctl/commands.h"
#include "services/ctl/flags.h"
#include "services/ctl/input.h"
#include "services/ctl/output.h"
#include "services/proto_convert.h"

ABSL_FLAG(std::string, model, "", "model to use; empty: the only one the server has");
ABSL_FLAG(std::string, file, "", "text document (models with a byte vocabulary only)");
ABSL_FLAG(std::string, token_ids, "",
          "file of token ids: a JSON array, or raw u32 in a file named *.u32");
ABSL_FLAG(std::string, system_ids, "",
          "file of system prompt ids, instead of the model's own prefix");
ABSL_FLAG(std::string, codec, "", "row codec: raw, int8 or int4; empty: the recipe's");
ABSL_FLAG(std::string, recipe, "",
          "recipe: kvzip, kvpress, kvzip+, uniform, full-softmax or head (docs/recipes.md); "
          "empty: the server's");
ABSL_FLAG(std::string, durability, "", "host or disk; empty: the store's default");
ABSL_FLAG(double, min_ratio, 0, "least ratio that is good enough; 0: --ratio, or 1");

ABSL_FLAG(absl::Duration, ttl, absl::InfiniteDuration(),
          "the object expires so long after it was stored; inf: never");
ABSL_FLAG(uint32_t, fidelity, 0,
          "measure how well the context is repeated at each ratio, on so many chunks; 0: do not");

namespace kvtier::ctl {
namespace {

absl::StatusOr<v1::ModelSummary> FindModel(CompressorClient& compressor) {
  KVTIER_ASSIGN_OR_RETURN(const v1::ListModelsResponse models, compressor.ListModels(Deadline()));
  const std::string wanted = absl::GetFlag(FLAGS_model);
  if (wanted.empty() && models.models_size() == 1) return models.models(0);
  std::string names;
  for (const v1::ModelSummary& model : models.models()) {
    if (model.name() == wanted) return model;
    absl::StrAppend(&names, names.empty() ? "" : ", ", model.name());
  }
  if (wanted.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("choose one with --model: ", names));
  }
  return absl::NotFoundError(absl::StrCat("unknown model '", wanted, "'; this server has ", names));
}

absl::StatusOr<std::vector<uint32_t>> ReadContext(const v1::ModelSummary& model) {
  const std::string file = absl::GetFlag(FLAGS_file);
  const std::string ids = absl::GetFlag(FLAGS_token_ids);
  if (file.empty() == ids.empty()) {
    return absl::InvalidArgumentError("give the context with either --file or --token_ids");
  }
  if (!ids.empty()) return ReadTokenIds(ids);
  std::optional<ByteVocabulary> vocabulary;
  if (model.has_byte_vocabulary()) {
    vocabulary = ByteVocabulary{.first_id = model.byte_vocabulary().first_id()};
  }
  // Refused before the file is read: the file may be large.
  KVTIER_RETURN_IF_ERROR(EncodeText("", vocabulary, model.name(), "--token_ids").status());
  // A shorter system prompt than the model's own leaves more positions: then the server decides.
  const bool own_system = absl::GetFlag(FLAGS_system_ids).empty();
  KVTIER_ASSIGN_OR_RETURN(
      const std::string text,
      ReadFile(file, own_system ? model.context_tokens_max() : model.positions_max()));
  return EncodeText(text, vocabulary, model.name(), "--token_ids");
}

absl::StatusOr<v1::Durability> ParseDurability(const std::string& name) {
  if (name.empty()) return v1::DURABILITY_UNSPECIFIED;
  if (name == "host") return v1::DURABILITY_HOST;
  if (name == "disk") return v1::DURABILITY_DISK;
  return absl::InvalidArgumentError(
      absl::StrCat("--durability is '", name, "'; it must be host or disk"));
}

absl::string_view StageName(v1::CompressStage stage) {
  switch (stage) {
    case v1::COMPRESS_STAGE_QUEUED:
      return "queued";
    case v1::COMPRESS_STAGE_PREFILL:
      return "prefill";
    case v1::COMPRESS_STAGE_SCORING:
      return "scoring";
    case v1::COMPRESS_STAGE_PACKING:
      return "packing";
    case v1::COMPRESS_STAGE_MEASURING:
      return "measuring";
    case v1::COMPRESS_STAGE_UPLOAD:
      return "upload";
    default:
      return "working";
  }
}

void Print(const v1::CompressResult& result) {
  if (absl::GetFlag(FLAGS_json)) {
    nlohmann::json json = ToJson(result.object());
    json["computed"] = result.computed();
    json["prefill_seconds"] = result.timings().prefill_seconds();
    json["scoring_seconds"] = result.timings().scoring_seconds();
    json["packing_seconds"] = result.timings().packing_seconds();
    json["measuring_seconds"] = result.timings().measuring_seconds();
    json["upload_seconds"] = result.timings().upload_seconds();
    std::puts(Dump(json).c_str());
    return;
  }
  const v1::ObjectSummary& object = result.object();
  absl::PrintF("key      %s\n", ToHex(object.name().key()));
  absl::PrintF("context  %d tokens, dense cache %s\n", object.context_tokens(),
               FormatBytes(object.dense_bytes()));
  if (result.computed()) {
    const v1::CompressTimings& t = result.timings();
    const double tokens = static_cast<double>(object.context_tokens());
    absl::PrintF("took     prefill %.2f s (%.0f tokens/s), scoring %.2f s (%.0f tokens/s), ",
                 t.prefill_seconds(), tokens / t.prefill_seconds(), t.scoring_seconds(),
                 tokens / t.scoring_seconds());
    absl::PrintF("packing %.2f s, ", t.packing_seconds());
    if (t.measuring_seconds() > 0) absl::PrintF("measuring %.2f s, ", t.measuring_seconds());
    absl::PrintF("upload %.2f s\n", t.upload_seconds());
  } else {
    absl::PrintF("took     nothing: it was stored already\n");
  }
  absl::PrintF("%s", FormatBands(object));
}

}  // namespace

absl::Status Compress(const Arguments& arguments) {
  KVTIER_RETURN_IF_ERROR(NoArguments(arguments));
  CompressorClient compressor(MakeChannel(absl::GetFlag(FLAGS_compressor)));
  KVTIER_ASSIGN_OR_RETURN(const v1::ModelSummary model, FindModel(compressor));
  v1::CompressRequest request;
  request.set_model(model.name());
  KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> context, ReadContext(model));
  request.mutable_token_ids()->Add(context.begin(), context.end());
  if (const std::string file = absl::GetFlag(FLAGS_system_ids); !file.empty()) {
    KVTIER_ASSIGN_OR_RETURN(const std::vector<uint32_t> system, ReadTokenIds(file));
    request.mutable_system()->mutable_token_ids()->Add(system.begin(), system.end());
  }
  request.set_recipe(absl::GetFlag(FLAGS_recipe));
  request.set_codec(absl::GetFlag(FLAGS_codec));
  request.set_min_ratio(absl::GetFlag(FLAGS_min_ratio));
  request.set_fidelity_chunks(absl::GetFlag(FLAGS_fidelity));
  KVTIER_ASSIGN_OR_RETURN(const v1::Durability durability,
                          ParseDurability(absl::GetFlag(FLAGS_durability)));
  request.set_durability(durability);
  KVTIER_ASSIGN_OR_RETURN(const uint64_t ttl_ms, TtlToProto(absl::GetFlag(FLAGS_ttl)));
  request.set_ttl_ms(ttl_ms);

  absl::StatusOr<v1::CompressResult> result;
  {
    ProgressBar bar;
    result = compressor.Compress(
        request,
        [&bar](const v1::CompressProgress& progress) {
          bar.Update(StageName(progress.stage()), progress.done(), progress.total());
        },
        Deadline());
  }
  KVTIER_RETURN_IF_ERROR(result.status());
  Print(*result);
  return absl::OkStatus();
}

absl::Status Models(const Arguments& arguments) {
  KVTIER_RETURN_IF_ERROR(NoArguments(arguments));
  CompressorClient compressor(MakeChannel(absl::GetFlag(FLAGS_compressor)));
  KVTIER_ASSIGN_OR_RETURN(const v1::ListModelsResponse models, compressor.ListModels(Deadline()));
  if (absl::GetFlag(FLAGS_json)) {
    nlohmann::json list = nlohmann::json::array();
    for (const v1::ModelSummary& model : models.models()) {
      list.push_back({{"name", model.name()},
                      {"digest", ToHex(model.digest())},
                      {"layers", model.layers()},
                      {"kv_heads", model.kv_heads()},
                      {"head_dim", model.head_dim()},
                      {"vocabulary", model.vocabulary()},
                      {"positions_max", model.positions_max()},
                      {"context_tokens_max", model.context_tokens_max()},
                      {"weight_bytes", model.weight_bytes()},
                      {"byte_vocabulary", model.has_byte_vocabulary()},
                      {"kv_dtype", model.kv_dtype()}});
    }
    std::puts(Dump(list).c_str());
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {
      {"model", "layers", "kv heads", "head dim", "positions", "weights", "kv", "text"}};
  for (const v1::ModelSummary& model : models.models()) {
    rows.push_back({model.name(), absl::StrCat(model.layers()), absl::StrCat(model.kv_heads()),
                    absl::StrCat(model.head_dim()), absl::StrCat(model.positions_max()),
                    FormatBytes(model.weight_bytes()), model.kv_dtype(),
                    model.has_byte_vocabulary() ? "bytes" : "token ids only"});
  }
  absl::PrintF("%s", FormatTable(rows));
  return absl::OkStatus();
}

}  // namespace kvtier::ctl
