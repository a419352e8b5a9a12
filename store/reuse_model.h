// How soon objects are asked for again, learnt from watching them: a rate for each class of object
// and age since its last use, and from the rates what keeping an object is worth.
//
// Requests that continue a conversation come neither at once nor at any time: somebody reads the
// answer and types. The rate rises with age before it falls, so neither "newest first" nor a count
// of uses orders objects well. What orders them is the most reuse per second of keeping that some
// plan to keep an object until a later age promises (the Gittins index of the keep-or-drop problem;
// J. Gittins, "Bandit processes and dynamic allocation indices", 1979):
//
//   index(class, age) = max over b >= age of  P(asked again in [age, b)) / E(time kept in [age, b))
//
// Rates are a product, class factor x age profile, fitted together, and each cell moves from that
// product towards its own observations as those grow: with little data a class borrows the profile
// of all. With no data the rate is proportional to the class's first guess and 1 / (age + 1 s),
// under which the index falls with age: within a class the order of LRU.
//
// Age is cut into kAgeBuckets, each a factor sqrt(2) longer than the one before. Deterministic.
// Learn costs O(classes x buckets^2), everything else O(1); memory is constant. Not thread-safe.
#ifndef KVTIER_STORE_REUSE_MODEL_H_
#define KVTIER_STORE_REUSE_MODEL_H_

#include <vector>

#include "absl/time/time.h"

namespace kvtier {

class ReuseModel {
 public:
  // The last bucket begins at 8.6 days and never ends.
  static constexpr int kAgeBuckets = 40;

  // Age at which a bucket begins; InfiniteDuration for kAgeBuckets. REQUIRES: 0 <= bucket <= that.
  static absl::Duration BucketBegin(int bucket);
  // The bucket that holds `age`; 0 for a negative one (a clock that was set back).
  static int BucketOf(absl::Duration age);

  // One cell of what is learnt.
  struct Cell {
    int reuse_class = 0;  // Index of its first guess.
    int bucket = 0;
  };

  // One class for each of `first_guesses`: how often, relative to each other, they are thought to
  // be asked for before anything is seen; > 0. `start` is no later than any time given below.
  // REQUIRES: at least one class.
  ReuseModel(std::vector<double> first_guesses, absl::Time start);

  // An object came into the cell, was there from `since` to `now`, was asked for while in it. Every
  // Enter has one Leave.
  void Enter(Cell cell, absl::Time now);
  void Leave(Cell cell, absl::Time since, absl::Time now);
  void Asked(Cell cell);

  // Makes Rate and Index follow what was watched until `now`. Old observations fade: they are
  // halved whenever there are kAskedMax of them.
  void Learn(absl::Time now);
  static constexpr double kAskedMax = 65536;

  // Requests per second for an object in the cell, and the index above, in the same unit. > 0.
  double Rate(Cell cell) const { return cells_[Position(cell)].rate; }
  double Index(Cell cell) const { return cells_[Position(cell)].index; }

 private:
  struct State {
    double asked = 0;    // Requests seen.
    double seconds = 0;  // Watched, by objects that have left.
    double present = 0;  // Objects in the cell now, and the sum of the times they entered at.
    double present_since_s = 0;  // Seconds since start_.
    double rate = 0;
    double index = 0;
  };

  size_t Position(Cell cell) const {
    return static_cast<size_t>(cell.reuse_class * kAgeBuckets + cell.bucket);
  }
  void FitIndex(int reuse_class);

  const std::vector<double> first_guesses_;  // [class_count]
  const absl::Time start_;
  std::vector<State> cells_;  // [class_count, kAgeBuckets]
};

}  // namespace kvtier

#endif  // KVTIER_STORE_REUSE_MODEL_H_
