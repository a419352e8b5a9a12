#include "cuda/device_decode_step.h"

#include <atomic>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "cuda/attention.h"
#include "cuda/attention_tensor.h"
#include "cuda/device_weights.h"
#include "cuda/launch_params.h"
#include "cuda/prepared_rows.h"

namespace kvtier {
namespace {

// A StepState in device memory.
struct StateWords {
  int64_t position = 0;
  int64_t tail_row = 0;
  uint32_t token = 0;
  uint32_t unused = 0;
};

absl::Status Bad(absl::string_view operation, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("decode step: ", operation, ": ", what));
}

// What all steps of a backend share.
struct Shared {
  std::shared_ptr<Device> device;
  Gemm& gemm;
  DType activations;
  std::atomic<bool> refusal_was_logged{false};
};

class DeviceDecodeStep final : public DecodeStep {
 public:
  DeviceDecodeStep(Shared& shared, const DecodeStepSpec& spec,
                   std::shared_ptr<const DevicePreparedRows> rows, DeviceMemory state)
      : shared_(shared),
        device_(shared.device),
        spec_(spec),
        rows_(std::move(rows)),
        state_(std::move(state)),
        replay_(spec.replay) {
    key_.group = spec_.group;
    for (int64_t layer = 0; layer < rows_->layer_count(); ++layer) {
      const AttentionParams params = ParamsOf(layer);
      const KvLayerView& tail = spec_.tails[static_cast<size_t>(layer)];
      const bool tensor = rows_->layer(layer).tensor_fits && AttentionTensorFits(params) &&
                          TensorSpanFits(TailSpan(tail));
      on_tensor_cores_.push_back(tensor);
      key_.layers.push_back(
          {.window = params.window, .query_tile = tensor ? TensorQueryTile(params) : kQueryTile});
    }
  }

  absl::Status Run(const StepState& state, absl::FunctionRef<absl::Status()> pass) override {
    KVTIER_RETURN_IF_ERROR(Check(state));
    KVTIER_RETURN_IF_ERROR(device_->Enter());
    KVTIER_RETURN_IF_ERROR(EnterBucket(state.tail_row / kTailBucketRows));
    const StateWords words{
        .position = state.position, .tail_row = state.tail_row, .token = state.token};
    KVTIER_RETURN_IF_ERROR(device_->CopyIn(&words, state_.as<void>(), sizeof(words)));
    if (graph_ == nullptr && replay_ && launched_in_bucket_) Capture(pass);
    if (graph_ != nullptr) {
      ++counts_.replayed;
      return graph_->Replay();
    }
    ++counts_.launched;
    KVTIER_RETURN_IF_ERROR(pass());
    launched_in_bucket_ = true;
    return absl::OkStatus();
  }

  StepCounts counts() const override { return counts_; }

  absl::Status Embed(const TensorView& table, float scale, TensorView y) override {
    KVTIER_RETURN_IF_ERROR(CheckRow("embed", y));
    if (table.rows != spec_.vocabulary || table.cols != y.cols) {
      return Bad("embed", absl::StrCat("a table of ", table.rows, " x ", table.cols));
    }
    return device_->Check(LaunchEmbed({.ids = &State()->token,
                                       .table = table.data,
                                       .table_type = ElementOf(table.dtype),
                                       .scale = scale,
                                       .y = y.data,
                                       .type = ElementOf(y.dtype),
                                       .rows = 1,
                                       .cols = y.cols},
                                      device_->stream()),
                          "embed");
  }

  absl::Status Linear(TensorView x, const LinearWeights& weights, TensorView y) override {
    KVTIER_RETURN_IF_ERROR(CheckRow("linear", x));
    KVTIER_RETURN_IF_ERROR(CheckRow("linear", y));
    KVTIER_ASSIGN_OR_RETURN(const DeviceWeights* w, WeightsOn(*device_, weights));
    if (x.cols != w->in || y.cols != w->out) {
      return Bad("linear",
                 absl::StrCat(x.cols, " to ", y.cols, " by weights of ", w->in, " to ", w->out));
    }
    GemmParams params = MakeGemmParams(x, *w, y);
    KVTIER_ASSIGN_OR_RETURN(const uint64_t wanted, shared_.gemm.WorkspaceBytes(params));
    // Products of one step follow each other: they share it. Inside a capture it is large enough,
    // as the same products were launched before.
    KVTIER_RETURN_IF_ERROR(Grow(wanted, workspace_));
    params.workspace = workspace_.memory.as<void>();
    params.workspace_bytes = workspace_.bytes;
    return shared_.gemm.Run(params);
  }

  absl::Status Rope(TensorView x, int64_t heads, const RopeTable& table) override {
    KVTIER_RETURN_IF_ERROR(CheckRow("rope", x));
    const auto pairs = static_cast<int64_t>(table.inverse_frequencies.size());
    if (pairs > kRopePairsMax || x.cols != heads * 2 * pairs) {
      return Bad("rope", absl::StrCat(heads, " heads and ", pairs, " frequencies for ", x.cols,
                                      " columns"));
    }
    RopeParams params = MakeRopeParams(x, heads, table);
    params.position_at = &State()->position;
    return device_->Check(LaunchRope(params, device_->stream()), "rope");
  }

  absl::Status AppendKv(int64_t layer, TensorView k, TensorView v) override {
    KVTIER_RETURN_IF_ERROR(CheckLayer("append", layer));
    KVTIER_RETURN_IF_ERROR(CheckRow("append", k));
    KVTIER_RETURN_IF_ERROR(CheckRow("append", v));
    const KvLayerView& tail = spec_.tails[static_cast<size_t>(layer)];
    const int64_t width = tail.kv_heads * tail.head_dim;
    if (k.cols != width || v.cols != width) {
      return Bad("append", absl::StrCat("rows of ", k.cols, " and ", v.cols, ", not ", width));
    }
    AppendKvParams params = MakeAppendKvParams(k, v, tail);
    params.row_at = &State()->tail_row;
    return device_->Check(LaunchAppendKv(params, device_->stream()), "append");
  }

  absl::Status Attention(int64_t layer, TensorView q, TensorView out) override {
    KVTIER_RETURN_IF_ERROR(CheckLayer("attention", layer));
    KVTIER_RETURN_IF_ERROR(CheckRow("attention", q));
    KVTIER_RETURN_IF_ERROR(CheckRow("attention", out));
    AttentionParams params = ParamsOf(layer);
    const int64_t width = params.kv_heads * params.group * params.head_dim;
    if (q.cols != width || out.cols != width) {
      return Bad("attention",
                 absl::StrCat("q of ", q.cols, ", out of ", out.cols, ", not ", width));
    }
    params.q = q.data;
    params.out = out.data;
    const DevicePreparedRows::Layer& rows = rows_->layer(layer);
    const StepPlan::Layer& plan = plan_->layers[static_cast<size_t>(layer)];
    params.spans = rows.spans;
    params.span_begin = rows.span_begin;
    params.head_rows = rows.head_rows;
    params.items = plan.items;
    params.merges = plan.merges;
    params.item_count = plan.item_count;
    params.merge_count = plan.merge_count;
    // Layers follow each other: they share the parts.
    params.part_out = parts_.memory.as<float>();
    params.part_lse = params.part_out + plan_->part_rows * params.head_dim;
    const bool tensor = on_tensor_cores_[static_cast<size_t>(layer)];
    if (tensor && !AttentionTensorFits(params)) {
      return Bad("attention", "q or out is not aligned to 4 bytes");
    }
    return device_->Check(tensor ? LaunchAttentionTensor(params, device_->stream())
                                 : LaunchAttention(params, device_->stream()),
                          "attention");
  }

 private:
  // Memory that only grows. Launches may still use what it had: it is freed in stream order.
  struct Scratch {
    DeviceMemory memory;
    uint64_t bytes = 0;
  };
  absl::Status Grow(uint64_t bytes, Scratch& scratch) {
    if (bytes <= scratch.bytes) return absl::OkStatus();
    KVTIER_ASSIGN_OR_RETURN(scratch.memory, DeviceMemory::Allocate(device_, bytes));
    scratch.bytes = bytes;
    return absl::OkStatus();
  }

  const StateWords* State() const { return state_.as<StateWords>(); }

  static KeySpan TailSpan(const KvLayerView& tail) {
    return {.keys = tail.keys, .values = tail.values, .rows = tail.capacity};
  }

  // What a launch over the layer has whatever its query is, and without its tables.
  AttentionParams ParamsOf(int64_t layer) const {
    const KvLayerView& tail = spec_.tails[static_cast<size_t>(layer)];
    AttentionParams params;
    params.q_type = ElementOf(shared_.activations);
    params.kv_type = ElementOf(tail.dtype);
    params.tail_row = &State()->tail_row;
    params.tail_keys = tail.keys;
    params.tail_values = tail.values;
    params.tail_capacity = tail.capacity;
    params.query_rows = 1;
    params.group = spec_.group;
    params.kv_heads = tail.kv_heads;
    params.head_dim = tail.head_dim;
    params.window = spec_.windows[static_cast<size_t>(layer)];
    params.scale = spec_.scale;
    return params;
  }

  absl::Status Check(const StepState& state) const {
    if (int64_t{state.token} >= spec_.vocabulary) {
      return Bad("run", absl::StrCat("token ", state.token, ", vocabulary ", spec_.vocabulary));
    }
    if (state.position < 0) return Bad("run", absl::StrCat("position ", state.position));
    const int64_t capacity = spec_.tails.front().capacity;
    if (state.tail_row < 0 || state.tail_row >= capacity) {
      return Bad("run", absl::StrCat("row ", state.tail_row, " of a tail of ", capacity));
    }
    return absl::OkStatus();
  }

  absl::Status CheckLayer(absl::string_view operation, int64_t layer) const {
    if (layer >= 0 && layer < rows_->layer_count() && plan_ != nullptr) return absl::OkStatus();
    return Bad(operation, absl::StrCat("layer ", layer, " of ", rows_->layer_count(),
                                       plan_ == nullptr ? ", outside of Run()" : ""));
  }

  absl::Status CheckRow(absl::string_view operation, const TensorView& view) const {
    if (view.rows == 1 && view.cols > 0 && view.data != nullptr &&
        view.dtype == shared_.activations) {
      return absl::OkStatus();
    }
    return Bad(operation, absl::StrCat("a view of [", view.rows, ", ", view.cols, "] of ",
                                       DTypeName(view.dtype), ", not of one row of ",
                                       DTypeName(shared_.activations)));
  }

  // The plan for that range of the tail, and no graph of another.
  absl::Status EnterBucket(int64_t bucket) {
    if (plan_ != nullptr && bucket == key_.bucket) return absl::OkStatus();
    graph_.reset();
    plan_.reset();
    launched_in_bucket_ = false;
    key_.bucket = bucket;
    KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<const StepPlan> plan, rows_->PlanFor(key_));
    const int64_t columns = spec_.tails.front().head_dim + 1;  // An output and its normaliser.
    KVTIER_RETURN_IF_ERROR(
        Grow(static_cast<uint64_t>(plan->part_rows * columns) * sizeof(float), parts_));
    plan_ = std::move(plan);
    return absl::OkStatus();
  }

  // Makes graph_. Where that fails it is not tried again: what the device refuses once it refuses
  // at the next step, too.
  void Capture(absl::FunctionRef<absl::Status()> pass) {
    const absl::Status status = TryCapture(pass);
    if (status.ok()) return;
    replay_ = false;
    if (absl::IsUnimplemented(status)) return;  // The device has no graphs: nothing went wrong.
    ++counts_.captures_refused;
    if (!shared_.refusal_was_logged.exchange(true)) {
      KVTIER_LOG(WARNING) << device_->name()
                          << ": decode steps are launched one operation after the other, slower, "
                             "as a step could not be captured: "
                          << status.message();
    }
  }
  absl::Status TryCapture(absl::FunctionRef<absl::Status()> pass) {
    KVTIER_RETURN_IF_ERROR(device_->BeginCapture());
    const absl::Status passed = pass();
    absl::StatusOr<std::unique_ptr<DeviceGraph>> graph = device_->EndCapture();
    KVTIER_RETURN_IF_ERROR(passed);
    KVTIER_RETURN_IF_ERROR(graph.status());
    graph_ = *std::move(graph);
    return absl::OkStatus();
  }

  Shared& shared_;
  const std::shared_ptr<Device> device_;
  const DecodeStepSpec spec_;
  const std::shared_ptr<const DevicePreparedRows> rows_;
  const DeviceMemory state_;           // StateWords
  std::vector<bool> on_tensor_cores_;  // [layers]
  StepPlanKey key_;                    // Of plan_.
  std::shared_ptr<const StepPlan> plan_;
  Scratch parts_;      // [part_rows, head_dim] outputs, then [part_rows] normalisers
  Scratch workspace_;  // Of products.
  bool replay_;        // Captures are wanted, and none has failed.
  bool launched_in_bucket_ = false;
  StepCounts counts_;
  std::unique_ptr<DeviceGraph> graph_;  // Of key_.bucket. Last: it uses the memory above.
};

absl::Status CheckSpec(const DecodeStepSpec& spec, const DevicePreparedRows& rows) {
  const auto layers = static_cast<size_t>(rows.layer_count());
  if (layers == 0 || spec.tails.size() != layers || spec.windows.size() != layers) {
    return Bad("create", absl::StrCat(layers, " layers of rows, ", spec.tails.size(), " tails, ",
                                      spec.windows.size(), " windows"));
  }
  if (spec.group < 1 || spec.vocabulary < 1) {
    return Bad("create",
               absl::StrCat("a group of ", spec.group, ", a vocabulary of ", spec.vocabulary));
  }
  const KvLayerView& first = spec.tails.front();
  for (size_t layer = 0; layer < layers; ++layer) {
    const KvLayerView& tail = spec.tails[layer];
    const bool alike = tail.dtype == rows.dtype() && tail.kv_heads == first.kv_heads &&
                       tail.capacity == first.capacity && tail.head_dim == first.head_dim &&
                       tail.keys != nullptr && tail.values != nullptr;
    const size_t heads = rows.layer(static_cast<int64_t>(layer)).rows_of_heads.size();
    if (!alike || heads != static_cast<size_t>(tail.kv_heads) || tail.head_dim < 1 ||
        tail.head_dim > kAttentionHeadDimMax || spec.windows[layer] < 0) {
      return Bad("create",
                 absl::StrCat("layer ", layer, ": a tail of [", tail.kv_heads, ", ", tail.capacity,
                              ", ", tail.head_dim, "] of ", DTypeName(tail.dtype), ", a window of ",
                              spec.windows[layer], ", rows of ", heads, " heads of ",
                              DTypeName(rows.dtype())));
    }
  }
  return absl::OkStatus();
}

class DeviceDecodeSteps final : public DecodeSteps {
 public:
  DeviceDecodeSteps(std::shared_ptr<Device> device, Gemm& gemm, DType activations)
      : shared_{.device = std::move(device), .gemm = gemm, .activations = activations} {}

  absl::StatusOr<std::shared_ptr<const PreparedRows>> Prepare(const std::vector<HeadSpans>& layers,
                                                              DType dtype) override {
    KVTIER_RETURN_IF_ERROR(shared_.device->Enter());
    return DevicePreparedRows::Create(shared_.device, layers, dtype);
  }

  absl::StatusOr<std::unique_ptr<DecodeStep>> Create(const DecodeStepSpec& spec) override {
    auto rows = std::dynamic_pointer_cast<const DevicePreparedRows>(spec.rows);
    if (rows == nullptr || &rows->device() != shared_.device.get()) {
      return Bad("create", "rows of another backend");
    }
    KVTIER_RETURN_IF_ERROR(CheckSpec(spec, *rows));
    KVTIER_RETURN_IF_ERROR(shared_.device->Enter());
    KVTIER_ASSIGN_OR_RETURN(DeviceMemory state,
                            DeviceMemory::Allocate(shared_.device, sizeof(StateWords)));
    return std::make_unique<DeviceDecodeStep>(shared_, spec, std::move(rows), std::move(state));
  }

 private:
  Shared shared_;
};

}  // namespace

std::unique_ptr<DecodeSteps> MakeDeviceDecodeSteps(std::shared_ptr<Device> device, Gemm& gemm,
                                                   DType activations) {
  return std::make_unique<DeviceDecodeSteps>(std::move(device), gemm, activations);
}

}  // namespace kvtier
