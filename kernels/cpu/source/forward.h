// One forward of a model over the rows of one or several sequences.
#pragma once

#include <cmath>
#include <vector>

#include "kernels.h"
#include "model.h"
#include "pool.h"
#include "types.h"

namespace hb {

// Floats that grow and are used again; 64-byte aligned.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  float* ensure(size_t count);
  float* get() const { return values_; }

 private:
  float* values_ = nullptr;
  size_t count_ = 0;
};

// What one forward needs besides weights and caches: shared by the threads of a call, kept from call to call.
struct Workspace {
  Buffer stream;    // [T][hidden stride]: the residual stream
  Buffer qkv;       // [T][heads]
  Buffer partials;  // [T][H][chunks][kPartialHead + padded Dh]
  Buffer act;       // [T][intermediate stride]
  Buffer own;       // for each thread: its copy of normed rows or mixed heads
  Buffer codes;     // for each thread: rows rounded for int8 weights, [T][code_bytes]
  Buffer turns;     // for each thread: cosines and sines [T][Dh / 2]
  std::vector<Best> best;  // [threads][kMaxRows]
  Buffer logits;                 // [rows][V]: of calls that ask how sure the model is
  std::vector<Weighed> weighed;  // [rows][chunks of V]
  int64_t own_size = 0;
  int64_t codes_size = 0;
  int64_t turns_size = 0;
  int max_chunks = 0;

  // makes room for `num_rows` rows of such a model, whose longest sequence will have `slots` slots, and for other weights
  // of up to `inputs` inputs
  void prepare(const Shape& shape, int num_rows, int64_t slots, int threads, int64_t inputs = 0);
  // makes room for weighing the logits of `num_rows` rows
  void prepare_logits(const Shape& shape, int num_rows);
};

// Where a forward's intermediate results go.
struct Features {
  const int32_t* layers = nullptr;  // ascending
  int32_t count = 0;
  float* values = nullptr;  // [count][T][D]
};

// One thread's part in forwards. All threads of a team call the same functions in the same order with the same arguments.
class Runner {
 public:
  Runner(const Kernels& kernels, Workspace& workspace, Team& team, int thread)
      : kernels_(kernels), workspace_(workspace), team_(team), thread_(thread) {}

  // writes the embedding of one id, padded
  void embed_row(const Model& model, int64_t id, float* to) const;
  // puts embeddings of ids, or given rows [T][D], into the residual stream
  void embed(const Model& model, int num_rows, const int64_t* ids, const float* rows);
  // runs all layers over the stream
  void layers(const Model& model, const Part* parts, int num_parts, int num_rows, const int64_t* positions,
              const Features& features);
  // the final norm of one row of the stream, padded
  void norm_row(const Model& model, int row, float* out);
  // The most probable token after each of `num_rows` normed rows (this thread's own copy, at normed()). `finite[t]` turns
  // false where row t has no finite largest logit; its token can be embedded and means nothing.
  // `highest`, if given, receives each token's probability; the workspace must have room for logits.
  void best_tokens(const Model& model, int num_rows, int64_t* tokens, bool* finite, double* highest = nullptr);
  void logits(const Model& model, int num_rows, float* logits);

  float* normed() const { return workspace_.own.get() + thread_ * workspace_.own_size; }
  float* stream(const Model& model, int row) const { return workspace_.stream.get() + row * stride(model.shape.hidden); }
  // this thread's room for rows as int8 weights want them
  char* codes() const { return reinterpret_cast<char*>(workspace_.codes.get() + thread_ * workspace_.codes_size); }
  void barrier() { team_.barrier(thread_); }
  int thread() const { return thread_; }
  const Kernels& kernels() const { return kernels_; }

  // rows lie a cache line further apart than they are long: so rows of a power of two don't share a cache set
  static int64_t stride(int64_t size) { return padded(size) + kBlock; }
  // this thread's share of `count` pieces of work
  int begin_of(int64_t count) const { return static_cast<int>(count * thread_ / team_.size); }
  int end_of(int64_t count) const { return static_cast<int>(count * (thread_ + 1) / team_.size); }

 private:
  void turn_tables(const Model& model, int num_rows, const int64_t* positions);
  void project_heads(const Model& model, int layer, const Part* parts, int num_parts, int num_rows);
  void attend(const Model& model, int layer, const Part* parts, int num_parts);
  void mix(const Model& model, const Part* parts, int num_parts);
  void norm_rows(const Model& model, const float* weight, int num_rows);
  void copy_features(const Model& model, int layer, int num_rows, const Features& features);
  void fetch(const Matrix& matrix, int block) const;
  void find_best(const Model& model, int num_rows, Best* best);
  void find_likely(const Model& model, int num_rows, Best* best, double* highest);

  const Kernels& kernels_;
  Workspace& workspace_;
  Team& team_;
  int thread_;
};

constexpr int64_t kNotDecoded = -2;

// Stops a chain of which the model is no longer sure.
struct Stop {
  double least = -HUGE_VAL;  // the probability with which it goes on
  bool is_product = false;   // of the product of its tokens' probabilities; else of the newest one's
};

// The arguments of one call; see abi.h.
struct ForwardCall {
  int num_rows = 0;
  const int64_t* ids = nullptr;
  const float* embeddings = nullptr;
  const int64_t* positions = nullptr;
  std::vector<Part> parts;
  Features features;
  float* hidden = nullptr;
  int num_head_rows = 0;
  const int32_t* head_rows = nullptr;
  float* logits = nullptr;
  // first those of head_rows, then the chain of each part; -1 where there is no finite largest logit, kNotDecoded behind
  // the end of a chain that was stopped
  int64_t* tokens = nullptr;
  const int32_t* chains = nullptr;  // [parts]: more tokens of each, one after the other; null for none
  std::vector<Stop> stops;  // of the chain of each part; empty where nothing stops one
};

// false if a row had no finite largest logit
bool forward(const Model& model, const Kernels& kernels, int threads, const ForwardCall& call);

}  // namespace hb
