#include "services/metrics.h"

#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include <prometheus/text_serializer.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/status_matchers.h"
#include "compressor/device_tier.h"
#include "compressor/library_counters.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/link/link_counters.h"
#include "store/lease_table.h"
#include "store/page_store.h"
#include "store/scrubber.h"
#include "store/tiered_store.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/testing/paths.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<prometheus::MetricFamily> Collect(const Metrics& metrics) {
  std::vector<prometheus::MetricFamily> families;
  for (const auto& collectable : metrics.collectables()) {
    for (prometheus::MetricFamily& family : collectable->Collect()) {
      families.push_back(std::move(family));
    }
  }
  return families;
}

std::string Export(const Metrics& metrics) {
  return prometheus::TextSerializer().Serialize(Collect(metrics));
}

// What one row of the page, or one family, says.
struct Described {
  std::string kind;
  std::set<std::string> labels;
  friend bool operator==(const Described&, const Described&) = default;
};
void PrintTo(const Described& d, std::ostream* os) {
  *os << d.kind << " " << testing::PrintToString(d.labels);
}

std::map<std::string, Described> ReadPage() {
  std::map<std::string, Described> page;
  std::ifstream file(SourcePath("docs/metrics.md"));
  for (std::string line; std::getline(file, line);) {
    if (!absl::StartsWith(line, "| `kvtier_")) continue;
    const std::vector<std::string> cells = absl::StrSplit(line, '|');
    EXPECT_EQ(cells.size(), 7u) << line;
    const auto strip = [](absl::string_view text) {
      return std::string(absl::StripAsciiWhitespace(text));
    };
    Described described{.kind = strip(cells[2]), .labels = {}};
    static const std::regex kLabel("`(\\w+)`");
    for (std::sregex_iterator it(cells[4].begin(), cells[4].end(), kLabel), end; it != end; ++it) {
      described.labels.insert((*it)[1]);
    }
    EXPECT_THAT(strip(cells[3]), testing::Not(IsEmpty())) << "unit missing: " << line;
    EXPECT_THAT(strip(cells[5]), testing::Not(IsEmpty())) << "text missing: " << line;
    std::string name = strip(cells[1]);
    name = name.substr(1, name.size() - 2);  // Without `...`.
    EXPECT_TRUE(page.emplace(name, described).second) << name << " is described twice";
  }
  return page;
}

TEST(MetricsTest, ThePageDescribesExactlyWhatIsExported) {
  TieredStoreOptions options;
  options.tenant_quotas.of = {{TenantId(), 1 << 20}};
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto store,
                              TieredStore::Create(options, nullptr, Clock::Real()));
  const auto pages = PageStore::Create(PageStoreOptions(), nullptr);
  Metrics metrics;
  metrics.ExportStore(*store);
  metrics.ExportPages(*pages);
  const Scrubber scrubber({.bytes_per_second = 0}, *store, Clock::Real());
  metrics.ExportScrub(scrubber.counters());
  metrics.CountRpc("Fetch", absl::OkStatus(), absl::Milliseconds(3));
  metrics.SetComputeDevice("auto", "cpu");
  metrics.ExportLibraries(nullptr);
  const LinkCounters link;
  FakeDeviceBackend device("fake:0");
  const DeviceTier tier({.bytes_max = 1}, device);
  metrics.ExportLink(link, &tier);

  std::map<std::string, Described> exported;
  for (const prometheus::MetricFamily& family : Collect(metrics)) {
    SCOPED_TRACE(family.name);
    Described& described = exported[family.name];
    described.kind = family.type == prometheus::MetricType::Counter     ? "counter"
                     : family.type == prometheus::MetricType::Gauge     ? "gauge"
                     : family.type == prometheus::MetricType::Histogram ? "histogram"
                                                                        : "other";
    ASSERT_FALSE(family.metric.empty()) << "no value to see before the first event";
    for (const prometheus::ClientMetric& metric : family.metric) {
      for (const auto& label : metric.label) described.labels.insert(label.name);
    }
    EXPECT_EQ(absl::EndsWith(family.name, "_total"), described.kind == "counter");
    EXPECT_TRUE(absl::StartsWith(family.name, "kvtier_"));
    EXPECT_FALSE(family.help.empty());
  }
  EXPECT_EQ(ReadPage(), exported);
}

TEST(MetricsTest, CountsCallsByMethodAndCode) {
  Metrics metrics;
  metrics.CountRpc("Fetch", absl::OkStatus(), absl::Milliseconds(3));
  metrics.CountRpc("Fetch", absl::OkStatus(), absl::Seconds(2));
  metrics.CountRpc("Fetch", absl::NotFoundError(""), absl::Milliseconds(1));
  const std::string text = Export(metrics);
  EXPECT_THAT(text, HasSubstr("kvtier_rpc_requests_total{code=\"OK\",method=\"Fetch\"} 2"));
  EXPECT_THAT(text, HasSubstr("kvtier_rpc_requests_total{code=\"NOT_FOUND\",method=\"Fetch\"} 1"));
  EXPECT_THAT(text, HasSubstr("kvtier_rpc_seconds_count{method=\"Fetch\"} 3"));
  EXPECT_THAT(text, HasSubstr("kvtier_rpc_seconds_bucket{method=\"Fetch\",le=\"0.004\"} 2"));
}

TEST(MetricsTest, ReadsWhatLibrariesDidAtEachScrape) {
  auto counters = std::make_shared<LibraryCounters>();
  Metrics metrics;
  metrics.ExportLibraries(counters);
  EXPECT_THAT(Export(metrics), HasSubstr("kvtier_compute_library_attention_fallbacks_total 0"));
  counters->attention_calls = 7;
  ++counters->attention_fallbacks;
  EXPECT_THAT(Export(metrics), HasSubstr("kvtier_compute_library_attention_calls_total 7"));
  EXPECT_THAT(Export(metrics), HasSubstr("kvtier_compute_library_attention_fallbacks_total 1"));
}

TEST(MetricsTest, ReadsTheStoreAtEachScrape) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, OpenTestStore("", 1 << 20, Clock::Real()));
  Metrics metrics;
  metrics.ExportStore(*store);
  EXPECT_THAT(Export(metrics), HasSubstr("kvtier_store_objects 0"));
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(store->Put(TenantId(), object, Durability::kHost));
  const std::string text = Export(metrics);
  EXPECT_THAT(text, HasSubstr("kvtier_store_objects 1"));
  EXPECT_THAT(text, HasSubstr("kvtier_store_uploads_sealed_total 1"));
  EXPECT_THAT(text, HasSubstr("kvtier_store_host_budget_bytes 1048576"));
}

TEST(MetricsTest, TellsWhatLeasesHoldAndWhereBandsLie) {
  // One band of 256 KiB and more: a memory file of its own.
  const CompressedObject object =
      MakeTestObject({.head_dim = 64, .context_tokens = 400, .edges = "1"});
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, OpenTestStore("", 4 << 20, Clock::Real()));
  LeaseTable leases({.leases_max = 1}, *store);
  Metrics metrics;
  metrics.ExportStore(*store, &leases);
  KVTIER_ASSERT_OK(store->Put(TenantId(), object, Durability::kHost));
  FetchRequest request;
  request.key = object.manifest->key;
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto lease, leases.Acquire(request, BandPlacement::kFile));
  EXPECT_THAT(leases.Acquire(request, BandPlacement::kFile),
              StatusIs(absl::StatusCode::kResourceExhausted));
  const std::string text = Export(metrics);
  EXPECT_THAT(text, HasSubstr("kvtier_store_leases 1\n"));
  EXPECT_THAT(text, HasSubstr(absl::StrCat("kvtier_store_leased_bytes ",
                                           object.manifest->total_bytes(), "\n")));
  EXPECT_THAT(text, HasSubstr("kvtier_store_leases_refused_total 1\n"));
  EXPECT_THAT(text, HasSubstr("kvtier_store_memory_files 1\n"));
  EXPECT_THAT(text, HasSubstr("kvtier_store_memory_files_refused_total 0\n"));
}

TEST(MetricsTest, OnlyTenantsWithAQuotaOfTheirOwnAreLabels) {
  TieredStoreOptions options;
  const TenantId a = *TenantId::FromString("a"), b = *TenantId::FromString("b");
  options.tenant_quotas = {.of = {{a, 1 << 20}}, .default_bytes = 2 << 20};
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto store,
                              TieredStore::Create(options, nullptr, Clock::Real()));
  Metrics metrics;
  metrics.ExportStore(*store);
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(store->Put(a, object, Durability::kHost));
  KVTIER_ASSERT_OK(store->Put(b, MakeTestObject({.upload_seed = 1}), Durability::kHost));
  const std::string text = Export(metrics);
  EXPECT_THAT(text, HasSubstr(absl::StrCat("kvtier_store_tenant_bytes{tenant=\"a\"} ",
                                           object.manifest->total_bytes())));
  EXPECT_THAT(text, HasSubstr("kvtier_store_tenant_quota_bytes{tenant=\"a\"} 1048576"));
  EXPECT_THAT(text, testing::Not(HasSubstr("tenant=\"b\"")));
}

}  // namespace
}  // namespace kvtier
