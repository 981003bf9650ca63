// HAMburger's macro-step: merged tokens, one forward of the base, then micro-steps until the stop head ends it.
#pragma once

#include <vector>

#include "forward.h"

namespace hb {

constexpr int kMaxSteps = 16;  // tokens of one macro-step

// What HAMburger adds to a base; letters: S tokens of a macro-step at most, D hidden size.
struct Grafts {
  const Model* micro = nullptr;  // layers without embedding and head; its final norm, if any, precedes the base's head
  Arena arena;
  Matrix query, keyed, out;             // the compositional embedder; `keyed` gives keys and then values
  const float* position_share = nullptr;  // [S][padded 2 D]: what a token's place adds to its key and value
  int32_t merge_heads = 0;
  bool residual_is_last = false;
  Matrix stop[3];
  int32_t stop_width = 0;
  std::vector<int32_t> feature_layers;
  int32_t max_steps = 0;
};

// One sequence's macro-step, and what came of it.
struct MacroSequence {
  Part part;  // of the slot
  int64_t position = 0;
  const int64_t* merged = nullptr;  // tokens that get the slot
  int num_merged = 0;
  const float* features = nullptr;  // [F][D], where there is no slot
  int64_t first_token = 0;          // the same
  const double* thresholds = nullptr;  // [S]: least P(continue) after each token; null if the stop head is not asked
  int64_t* tokens = nullptr;           // [S]
  double* probabilities = nullptr;     // [S]

  int num_tokens = 0;
  int num_asked = 0;
  bool finite = true;
  bool stop_finite = true;
};

struct MacroCall {
  const Model* base = nullptr;
  const Model* slot_base = nullptr;  // what the slots go through; null where features and token 1 are given
  std::vector<MacroSequence> sequences;
};

// sequences of one call: the first micro-step of each takes its features and a token
inline int most_sequences(const Grafts& grafts) {
  return kMaxRows / (static_cast<int>(grafts.feature_layers.size()) + 1);
}

// Sequences go together: one forward of the base, then micro-steps of those that go on; who ends drops out.
void macro_steps(const Grafts& grafts, const Kernels& kernels, int threads, MacroCall& call);

}  // namespace hb
