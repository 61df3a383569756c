// How often drafts hold: counted for each sequence, with what all showed until it has shown its own.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <unordered_map>
#include <vector>

// What became of a sequence's drafts.
struct Verified {
  int64_t sequence;
  int drafted, accepted;
};

// Drafts tried and accepted by position, given that those before held; old ones fade.
class DraftCounts {
 public:
  explicit DraftCounts(int most, int64_t step = 0) : places_(most), step_(step) {}

  // It is that step now.
  void fade(int64_t step) {
    if (step < step_ + FADE_STEPS) return;
    const double kept = std::pow(KEPT, (double)(step - step_));
    for (auto& place : places_) {
      place.tried *= kept;
      place.held *= kept;
    }
    step_ = step;
  }

  void learn(int at, bool holds) {
    auto& place = places_[at];
    place.run = holds ? std::max(place.run, 0) + 1 : std::min(place.run, 0) - 1;
    // A few trials say little. A run as long as all that is counted is no change.
    const double held = estimate(at, 0.5, 2.0), chance = holds ? held : 1 - held;
    const int run = std::abs(place.run);
    if (run < place.tried && std::pow(chance, run) < HARDLY_LUCK) {
      place.tried *= KEPT_BY_CHANGE;
      place.held *= KEPT_BY_CHANGE;
      place.run = 0;
    }
    place.tried = place.tried * KEPT + 1;
    place.held = place.held * KEPT + holds;
  }

  double times(int at) const { return places_[at].tried; }

  double estimate(int at, double prior, double weight) const {
    return (places_[at].held + weight * prior) / (places_[at].tried + weight);
  }

 private:
  // What a count is multiplied with: at every step, and when its draft is tried again.
  static constexpr double KEPT = 0.997;
  // Counts fade once in so many steps, since it takes time.
  static constexpr int FADE_STEPS = 8;
  // So small a chance of as many equal outcomes on end says that things have changed.
  static constexpr double HARDLY_LUCK = 0.001;
  // What counts are multiplied with then: the estimate stays, and what comes next moves it more.
  static constexpr double KEPT_BY_CHANGE = 0.1;

  // `run`: equal outcomes on end: so many held, or, below 0, so many did not.
  struct Place {
    double tried = 0.0, held = 0.0;
    int run = 0;
  };

  std::vector<Place> places_;
  int64_t step_;
};

// Expected chance of each draft to hold if those before it do.
class Acceptance {
 public:
  // `most`: drafts of a sequence in a step.
  explicit Acceptance(int most) : most_(most), shared_(most) {}

  // Of a sequence that has shown nothing. A draft of which nothing is known is taken for the one before it, and for
  // hopeless before that one was tried a few times: at first nobody knows what several drafts cost.
  std::vector<double> shared() {
    shared_.fade(step_);
    std::vector<double> found(most_, 0.0);
    double prior = GUESS;
    for (int place = 0; place < most_; place++) {
      found[place] = prior = shared_.estimate(place, prior, GUESS_TRIALS);
      if (shared_.times(place) < FEW_TRIALS) break;
    }
    return found;
  }

  // Of a sequence, given what all showed.
  std::vector<double> of(int64_t sequence, const std::vector<double>& shared) {
    const auto known = own_.find(sequence);
    if (known == own_.end()) return shared;
    known->second.fade(step_);
    std::vector<double> found(most_);
    for (int place = 0; place < most_; place++)
      found[place] = known->second.estimate(place, shared[place], PRIOR_TRIALS);
    return found;
  }

  // A step is done, with drafts of these sequences.
  void learn(const std::vector<Verified>& verified) {
    step_++;
    for (const auto& one : verified) {
      auto& own = own_.try_emplace(one.sequence, most_, step_).first->second;
      for (auto* counts : {&shared_, &own}) {
        counts->fade(step_);
        for (int place = 0; place < std::min({one.drafted, one.accepted + 1, most_}); place++)
          counts->learn(place, place < one.accepted);
      }
    }
  }

  // It has ended.
  void forget(int64_t sequence) { own_.erase(sequence); }

 private:
  // The shared acceptance counts like so many trials of a sequence of its own.
  static constexpr double PRIOR_TRIALS = 12.0;
  // Acceptance before anything was tried, and its weight in trials.
  static constexpr double GUESS = 0.65, GUESS_TRIALS = 5.0;
  static constexpr double FEW_TRIALS = 3.0;

  int most_;
  int64_t step_ = 0;
  DraftCounts shared_;
  std::unordered_map<int64_t, DraftCounts> own_;
};
