// kvtierctl as a script sees it: measured fidelity, other bands of a stored object, and rectangles.
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "compressor/safetensors.h"
#include "tests/integration/ctl_fixture.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(CtlTest, MeasuresFidelityWhenAsked) {
  StartStore();
  StartCompressor();
  const Outcome measured =
      Run("compress", {"--json", "--file", Write("text", kText), "--fidelity=1"});
  ASSERT_EQ(measured.exit_code, 0) << measured.err;
  EXPECT_GT(measured.json()["measuring_seconds"], 0);
  const std::string key = measured.json()["key"];
  const nlohmann::json stat = Run("stat", {key, "--json"}).json();
  EXPECT_EQ(stat["fidelity"]["chunks"], 1);
  EXPECT_EQ(stat["fidelity"]["tokens"], 49);  // The second chunk of 64 and 49.
  for (const nlohmann::json& band : stat["bands"]) {
    EXPECT_GE(band["accuracy"], 0);
    EXPECT_LE(band["accuracy"], 1);
  }
  EXPECT_THAT(Run("stat", {key}).out,
              AllOf(HasSubstr("measured on 49 tokens of 1 chunks"), HasSubstr("repeats")));
  // What is stored already is not measured anew.
  const Outcome again_measured =
      Run("compress", {"--json", "--file", dir_.File("text"), "--fidelity=2"});
  EXPECT_FALSE(again_measured.json()["computed"]);
  EXPECT_EQ(Run("stat", {key, "--json"}).json()["fidelity"]["chunks"], 1);
  // It survives re-banding where the edge stays.
  ASSERT_EQ(Run("reband", {key, "--edges=0.2,0.25,1"}).exit_code, 0);
  const nlohmann::json again = Run("stat", {key, "--json"}).json();
  EXPECT_EQ(again["bands"][0]["accuracy"], stat["bands"][1]["accuracy"]);
  EXPECT_FALSE(again["bands"][1].contains("accuracy"));
  EXPECT_EQ(again["bands"][2]["accuracy"], stat["bands"][5]["accuracy"]);
}

TEST_F(CtlTest, RebandsAStoredObject) {
  StartStore();
  StartCompressor();
  StartWorker();
  const std::string key = CompressText();
  const auto upload = [&] {
    return Run("stat", {key, "--json"}).json().value("upload_id", std::string());
  };
  const auto answer = [&](const char* ratio) {
    return Run("ask", {"--key", key, "--ratio", ratio, "--question=lamp = ", "--answer_tokens=8",
                       "--json"})
        .json()["answer_ids"];
  };
  const std::string first = upload();
  const nlohmann::json at_03 = answer("0.3");

  const Outcome dry = Run("reband", {key, "--edges=0.05,0.3,0.5,1", "--dry_run", "--json"});
  ASSERT_EQ(dry.exit_code, 0) << dry.err;
  EXPECT_FALSE(dry.json()["stored"]);
  EXPECT_FALSE(dry.json().contains("upload_id"));
  EXPECT_EQ(upload(), first);

  const Outcome done = Run("reband", {key, "--edges=0.05,0.3,0.5,1", "--json"});
  ASSERT_EQ(done.exit_code, 0) << done.err;
  EXPECT_EQ(done.json()["key"], key);
  EXPECT_EQ(done.json()["bands"], dry.json()["bands"]);
  EXPECT_TRUE(done.json()["stored"]);
  EXPECT_EQ(done.json()["upload_id"], upload());
  EXPECT_NE(upload(), first);
  const nlohmann::json stat = Run("stat", {key, "--json"}).json();
  ASSERT_EQ(stat["bands"].size(), 4);
  for (size_t b = 0; b < 4; ++b) {
    EXPECT_EQ(stat["bands"][b]["bytes"], done.json()["bands"][b]["bytes"]);
  }
  EXPECT_EQ(stat["durability"], "disk");
  EXPECT_EQ(Run("verify", {key}).exit_code, 0);
  EXPECT_EQ(answer("0.3"), at_03);  // A stored edge: the same pairs.
  EXPECT_EQ(StoredObjects(), 1);

  // A budget: half of what all takes.
  const uint64_t all = done.json()["bands"][3]["bytes_up_to_here"];
  const Outcome budget = Run("reband", {key, absl::StrCat("--bytes=", all / 2), "--json"});
  ASSERT_EQ(budget.exit_code, 0) << budget.err;
  EXPECT_LE(budget.json()["bands"][0]["bytes"], all / 2);
  EXPECT_GT(budget.json()["bands"][0]["bytes"], all / 3);
  EXPECT_THAT(Run("reband", {key, "--bytes=100"}).err, HasSubstr("the budget is 100"));

  // It survives what the object it replaced survived.
  store_.reset();
  StartStore();
  EXPECT_EQ(upload(), budget.json()["upload_id"]);
  EXPECT_EQ(Run("verify", {key}).exit_code, 0);
}

TEST_F(CtlTest, DropsBandsByRebandingOnlyWhenToldTo) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const auto stat = [&] { return Run("stat", {key, "--json"}).json(); };
  const nlohmann::json before = stat();
  const Outcome refused = Run("reband", {key, "--edges=0.1,0.3"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("the edges end at 0.3, the bands that are here at 1"),
                                 HasSubstr("--drop_rest")));
  EXPECT_EQ(stat()["upload_id"], before["upload_id"]);
  EXPECT_EQ(stat()["resident_bands"], before["resident_bands"]);

  const Outcome dropped = Run("reband", {key, "--edges=0.1,0.3", "--drop_rest", "--json"});
  ASSERT_EQ(dropped.exit_code, 0) << dropped.err;
  EXPECT_EQ(stat()["upload_id"], dropped.json()["upload_id"]);
  EXPECT_EQ(stat()["bands"].size(), 2);
  EXPECT_EQ(stat()["bands"][1]["ratio"], 0.3);
  // All of what is left: nothing is dropped any more.
  EXPECT_EQ(Run("reband", {key, "--edges=0.2,0.3"}).exit_code, 0);
}

TEST_F(CtlTest, RebandsWhatIsLeftOfAnObject) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  ASSERT_EQ(Run("rm", {key, "--keep_ratio=0.3"}).exit_code, 0);
  const Outcome beyond = Run("reband", {key, "--edges=0.1,1"});
  EXPECT_EQ(beyond.exit_code, 2);
  EXPECT_THAT(beyond.err, HasSubstr("the bands that are here at 0.3"));
  const Outcome part = Run("reband", {key, "--edges=0.15,0.3", "--json"});
  ASSERT_EQ(part.exit_code, 0) << part.err;
  const nlohmann::json stat = Run("stat", {key, "--json"}).json();
  EXPECT_EQ(stat["bands"].size(), 2);
  EXPECT_EQ(stat["resident_bands"], 2);
  EXPECT_EQ(Run("verify", {key}).exit_code, 0);
  // Compressing again brings back what is not there.
  EXPECT_THAT(Run("compress", {"--file", dir_.File("text"), "--min_ratio=0.3"}).out,
              HasSubstr("stored already"));
  EXPECT_THAT(Run("compress", {"--file", dir_.File("text")}).out, Not(HasSubstr("stored already")));
  EXPECT_EQ(Run("stat", {key, "--json"}).json()["bands"].size(), 6);
}

TEST_F(CtlTest, CutsRectangles) {
  StartStore();
  StartCompressor();
  StartWorker();
  const std::string key = CompressText();
  const Outcome done = Run("reband", {key, "--rectangle=0.3", "--of=object", "--json"});
  ASSERT_EQ(done.exit_code, 0) << done.err;
  EXPECT_EQ(done.json()["recipe"], "kvzip/1;rect=object");
  const std::string rectangle = done.json()["key"];
  EXPECT_NE(rectangle, key);
  EXPECT_EQ(StoredObjects(), 2);  // What it was cut from is still there.
  EXPECT_EQ(Run("stat", {rectangle, "--json"}).json()["bands"][0]["rows_up_to_here"], 4 * 33);
  EXPECT_EQ(Run("ask", {"--key", rectangle, "--ratio=0.3", "--question=lamp", "--json"}).exit_code,
            0);

  const std::string file = dir_.File("rectangle.safetensors");
  const Outcome written = Run("reband", {key, "--rectangle=0.3", "--out", file, "--json"});
  ASSERT_EQ(written.exit_code, 0) << written.err;
  EXPECT_FALSE(written.json()["stored"]);
  EXPECT_FALSE(written.json().contains("upload_id"));
  EXPECT_EQ(StoredObjects(), 2);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto tensors, SafetensorsFile::Open(file));
  EXPECT_EQ(tensors->metadata().at("recipe"), "kvzip/1;rect=layer");
  EXPECT_EQ(tensors->metadata().at("logical_length"), "116");
  const std::vector<int64_t> first = tensors->entries().at("layers.0.keys").shape;
  const std::vector<int64_t> second = tensors->entries().at("layers.1.values").shape;
  EXPECT_EQ(first[0], 2);
  EXPECT_EQ(first[2], 32);
  // 3 protected rows in each layer, and 67 slabs of the 226.
  EXPECT_EQ(first[1] + second[1], 3 + 3 + 67);
}

TEST_F(CtlTest, SaysWhichRectangleTheStoreHas) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const auto cut = [&](const char* ratio) {
    return Run("reband", {key, absl::StrCat("--rectangle=", ratio), "--json"});
  };
  const Outcome small = cut("0.3");
  ASSERT_EQ(small.exit_code, 0) << small.err;
  const std::string rectangle = small.json()["key"];
  const auto stored = [&] { return Run("stat", {rectangle, "--json"}).json(); };
  EXPECT_EQ(stored()["upload_id"], small.json()["upload_id"]);

  const Outcome large = cut("0.5");  // The same key: it takes the place of the smaller one.
  ASSERT_EQ(large.exit_code, 0) << large.err;
  EXPECT_EQ(large.json()["key"], rectangle);
  EXPECT_TRUE(large.json()["stored"]);
  const std::string kept = large.json()["upload_id"];
  EXPECT_EQ(stored()["upload_id"], kept);
  EXPECT_EQ(stored()["bands"][0]["ratio"], 0.5);

  const Outcome refused = cut("0.3");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("ALREADY_EXISTS"), HasSubstr(kept)));
  EXPECT_FALSE(refused.json()["stored"]);
  EXPECT_FALSE(refused.json().contains("upload_id"));
  EXPECT_EQ(refused.json()["kept_upload_id"], kept);
  EXPECT_EQ(stored()["upload_id"], kept);
  const Outcome text = Run("reband", {key, "--rectangle=0.3"});
  EXPECT_EQ(text.exit_code, 1);
  EXPECT_THAT(text.out, AllOf(HasSubstr("nothing stored"), ContainsRegex("\n *0.5 ")));
  EXPECT_THAT(text.out, Not(ContainsRegex("\n *0.3 ")));

  // One object for both ratios: then the smaller one is there already.
  const Outcome both = Run("reband", {rectangle, "--edges=0.3,0.5", "--json"});
  ASSERT_EQ(both.exit_code, 0) << both.err;
  const Outcome there = cut("0.3");
  EXPECT_EQ(there.exit_code, 0) << there.err;
  EXPECT_FALSE(there.json()["stored"]);
  EXPECT_EQ(there.json()["kept_upload_id"], both.json()["upload_id"]);
  EXPECT_EQ(stored()["bands"][0]["bytes"], small.json()["bands"][0]["bytes"]);
}

}  // namespace
}  // namespace kvtier
