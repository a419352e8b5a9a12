#include "bench/quality/answers_file.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace kvtier {
namespace {

using Json = nlohmann::ordered_json;

absl::Status Bad(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("answers: ", what));
}

absl::StatusOr<std::string> Text(const Json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || !it->is_string()) return Bad(absl::StrCat(field, " is not a text"));
  return it->get<std::string>();
}

absl::StatusOr<uint64_t> Count(const Json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || !it->is_number_unsigned()) {
    return Bad(absl::StrCat(field, " is not a count"));
  }
  return it->get<uint64_t>();
}

absl::StatusOr<std::vector<Json>> Objects(const Json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || !it->is_array() ||
      !std::all_of(it->begin(), it->end(), [](const Json& item) { return item.is_object(); })) {
    return Bad(absl::StrCat(field, " is not a list of objects"));
  }
  return std::vector<Json>(it->begin(), it->end());
}

template <typename E>
std::optional<E> ByName(std::initializer_list<E> all, absl::string_view (*name)(E),
                        absl::string_view text) {
  for (E one : all) {
    if (name(one) == text) return one;
  }
  return std::nullopt;
}

std::string CellName(const TaskResult& result, const Cell& cell) {
  return absl::StrCat(result.task->name, ", ", cell.method, " at ", cell.ratio.ToString(), " ",
                      cell.codec, ", ", SettingName(cell.setting));
}

absl::StatusOr<TaskResult> ParseTask(const Json& json) {
  TaskResult result;
  KVTIER_ASSIGN_OR_RETURN(const std::string name, Text(json, "name"));
  const auto tasks = AllTasks();
  const auto task =
      std::find_if(tasks.begin(), tasks.end(), [&](const Task& t) { return name == t.name; });
  if (task == tasks.end()) return Bad(absl::StrCat("task \"", name, "\" is unknown"));
  result.task = &*task;
  const auto samples = json.find("document_samples");
  const auto depth = json.find("depth");
  if (samples == json.end() || !samples->is_array() || depth == json.end() || !depth->is_array()) {
    return Bad(absl::StrCat(name, ": document_samples and depth are no lists"));
  }
  for (const Json& count : *samples) {
    // As many depths as samples bound what is allocated here.
    if (!count.is_number_unsigned() ||
        count.get<uint64_t>() > depth->size() - result.document.size()) {
      return Bad(absl::StrCat(name, ": document_samples and depth do not fit"));
    }
    result.document.insert(result.document.end(), count.get<uint64_t>(), result.documents++);
  }
  for (const Json& value : *depth) {
    if (!value.is_number()) return Bad(absl::StrCat(name, ": a depth is no number"));
    result.depth.push_back(value.get<double>());
  }
  if (result.document.empty() || result.depth.size() != result.document.size()) {
    return Bad(absl::StrCat(name, ": document_samples and depth do not fit"));
  }
  return result;
}

absl::StatusOr<Cell> ParseCell(const Json& json, size_t samples) {
  Cell cell;
  KVTIER_ASSIGN_OR_RETURN(cell.method, Text(json, "method"));
  KVTIER_ASSIGN_OR_RETURN(cell.codec, Text(json, "codec"));
  KVTIER_ASSIGN_OR_RETURN(const std::string setting_name, Text(json, "setting"));
  KVTIER_ASSIGN_OR_RETURN(const std::string origin_name, Text(json, "origin"));
  KVTIER_ASSIGN_OR_RETURN(const std::string right, Text(json, "right"));
  const auto setting = ByName({Setting::kPerQuery, Setting::kShared}, SettingName, setting_name);
  const auto origin =
      ByName({Origin::kFull, Origin::kSelected, Origin::kBands}, OriginName, origin_name);
  if (!setting.has_value()) return Bad(absl::StrCat("setting \"", setting_name, "\" is unknown"));
  if (!origin.has_value()) return Bad(absl::StrCat("origin \"", origin_name, "\" is unknown"));
  cell.setting = *setting;
  cell.origin = *origin;
  const auto ratio = json.find("ratio");
  if (ratio == json.end() || !ratio->is_number()) return Bad("ratio is not a number");
  KVTIER_ASSIGN_OR_RETURN(cell.ratio, Ratio::FromDouble(ratio->get<double>()));
  if (right.size() != samples || right.find_first_not_of("01") != std::string::npos) {
    return Bad(absl::StrCat(cell.method, " at ", cell.ratio.ToString(), ": right is not ", samples,
                            " of 0 and 1"));
  }
  for (char c : right) cell.right.push_back(c == '1' ? 1 : 0);
  return cell;
}

}  // namespace

std::string QualityRunToJson(const QualityRun& run) {
  Json json;
  json["version"] = 1;
  json["model"] = run.source.model;
  json["model_digest"] = run.source.model_digest;
  json["seed"] = run.source.seed;
  json["document_bytes"] = run.source.document_bytes;
  json["text"] = {{"files", run.source.text_files}, {"sha256", run.source.text_digest}};
  json["tasks"] = Json::array();
  json["cells"] = Json::array();
  for (const TaskResult& result : run.tasks) {
    std::vector<uint64_t> samples(result.documents);
    for (uint32_t document : result.document) ++samples[document];
    std::vector<double> depth;
    for (double value : result.depth) depth.push_back(std::round(value * 1e3) / 1e3);
    json["tasks"].push_back(
        {{"name", result.task->name}, {"document_samples", samples}, {"depth", depth}});
    for (const Cell& cell : result.cells) {
      std::string right;
      for (uint8_t one : cell.right) right += one != 0 ? '1' : '0';
      json["cells"].push_back({{"task", result.task->name},
                               {"method", cell.method},
                               {"ratio", cell.ratio.ToDouble()},
                               {"setting", std::string(SettingName(cell.setting))},
                               {"codec", cell.codec},
                               {"origin", std::string(OriginName(cell.origin))},
                               {"right", right}});
    }
  }
  return json.dump();
}

absl::StatusOr<QualityRun> QualityRunFromJson(absl::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), /*cb=*/nullptr,
                                /*allow_exceptions=*/false);
  if (!json.is_object()) return Bad("not a JSON object");
  QualityRun run;
  KVTIER_ASSIGN_OR_RETURN(const uint64_t version, Count(json, "version"));
  if (version != 1) return Bad(absl::StrCat("version ", version, ", this build reads 1"));
  KVTIER_ASSIGN_OR_RETURN(run.source.model, Text(json, "model"));
  KVTIER_ASSIGN_OR_RETURN(run.source.model_digest, Text(json, "model_digest"));
  KVTIER_ASSIGN_OR_RETURN(run.source.seed, Count(json, "seed"));
  KVTIER_ASSIGN_OR_RETURN(run.source.document_bytes, Count(json, "document_bytes"));
  const auto source = json.find("text");
  if (source == json.end() || !source->is_object()) return Bad("text is not an object");
  KVTIER_ASSIGN_OR_RETURN(run.source.text_files, Count(*source, "files"));
  KVTIER_ASSIGN_OR_RETURN(run.source.text_digest, Text(*source, "sha256"));
  KVTIER_ASSIGN_OR_RETURN(const std::vector<Json> tasks, Objects(json, "tasks"));
  for (const Json& task : tasks) {
    KVTIER_ASSIGN_OR_RETURN(TaskResult result, ParseTask(task));
    run.tasks.push_back(std::move(result));
  }
  KVTIER_ASSIGN_OR_RETURN(const std::vector<Json> cells, Objects(json, "cells"));
  for (const Json& item : cells) {
    KVTIER_ASSIGN_OR_RETURN(const std::string name, Text(item, "task"));
    const auto result = std::find_if(run.tasks.begin(), run.tasks.end(),
                                     [&](const TaskResult& r) { return name == r.task->name; });
    if (result == run.tasks.end()) return Bad(absl::StrCat("a cell of task \"", name, "\""));
    KVTIER_ASSIGN_OR_RETURN(Cell cell, ParseCell(item, result->document.size()));
    result->cells.push_back(std::move(cell));
  }
  for (const TaskResult& result : run.tasks) {
    if (result.cells.empty() || result.cells.front().method != "full") {
      return Bad(absl::StrCat(result.task->name, ": the first cell is not the full cache"));
    }
  }
  return run;
}

absl::Status MergeAnswers(const QualityRun& from, QualityRun& into) {
  if (from.source != into.source) return Bad("the files are of different models, seeds or texts");
  for (const TaskResult& more : from.tasks) {
    const auto result = std::find_if(into.tasks.begin(), into.tasks.end(),
                                     [&](const TaskResult& r) { return r.task == more.task; });
    if (result == into.tasks.end()) {
      into.tasks.push_back(more);
      continue;
    }
    if (result->document != more.document) {
      return Bad(absl::StrCat(more.task->name, ": the files have different samples"));
    }
    for (const Cell& cell : more.cells) {
      const auto same =
          std::find_if(result->cells.begin(), result->cells.end(), [&](const Cell& c) {
            return c.method == cell.method && c.ratio == cell.ratio && c.setting == cell.setting &&
                   c.codec == cell.codec && c.origin == cell.origin;
          });
      if (same == result->cells.end()) {
        result->cells.push_back(cell);
      } else if (same->right != cell.right) {
        return Bad(absl::StrCat(CellName(more, cell), ": the files have different answers"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvtier
