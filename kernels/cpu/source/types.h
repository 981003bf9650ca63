// What the parts of the engine hand to one another. Letters as in hambench's engine: T rows, D hidden size, H query heads,
// KVH key/value heads, Dh head size, V vocabulary.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>

// checks of what the Python side promises; only a debug build pays for them
#ifdef HB_DEBUG
#define HB_ASSERT(condition) assert(condition)
#else
#define HB_ASSERT(condition) ((void)0)
#endif

namespace hb {

constexpr int kBlock = 16;        // outputs of one block of a packed matrix; every padded size is a multiple of it
constexpr int kChunk = 128;       // slots of one attention task: fixed, so that sums don't depend on what runs beside
constexpr int kLogitChunk = 1024;  // logits that are weighed at a time: fixed as well
constexpr int kMaxRows = 64;      // rows of one forward
constexpr int kMostHeadDim = 512;
constexpr int kPartialHead = 16;  // floats before the values of an attention partial: maximum, sum, padding

constexpr int64_t padded(int64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }
constexpr int num_logit_chunks(int vocab) { return (vocab + kLogitChunk - 1) / kLogitChunk; }

// Rows that meet int8 weights are rounded to 15 bits in groups of inputs: of a row two bytes for each input, then for each
// group a scale and a sum of codes.
constexpr int kGroupInputs = 128;
constexpr int64_t num_groups(int64_t inputs) { return (inputs + kGroupInputs - 1) / kGroupInputs; }
constexpr int64_t code_bytes(int64_t inputs) {
  return (2 * padded(inputs) + 8 * num_groups(inputs) + 63) / 64 * 64;
}

enum class Type : int32_t { f32 = 0, bf16 = 1, i8 = 2 };

// A weight [outputs, inputs] in blocks of 16 outputs, both sizes padded with zeros. In a block inputs follow one another,
// each with its 16 outputs; of bfloat16, two inputs at a time, side by side for each output; of int8 four, codes + 128.
struct Matrix {
  Type type = Type::f32;
  int32_t outputs = 0;      // padded
  int32_t inputs = 0;       // padded
  const void* blocks = nullptr;
  const float* scales = nullptr;  // [outputs], of int8
  const float* bias = nullptr;    // [outputs] or nothing

  int32_t num_blocks() const { return outputs / kBlock; }
  size_t element_bytes() const { return type == Type::f32 ? 4 : type == Type::bf16 ? 2 : 1; }
  size_t block_bytes() const { return static_cast<size_t>(inputs) * kBlock * element_bytes(); }
  const char* block(int32_t index) const { return static_cast<const char*>(blocks) + index * block_bytes(); }
};

struct Layer {
  Matrix qkv;      // heads one after the other, each padded
  Matrix out;
  Matrix gate_up;  // a block of gate, then the same block of up
  Matrix down;
  const float* input_norm = nullptr;
  const float* mlp_norm = nullptr;
  const float* q_norm = nullptr;  // [Dh] or nothing
  const float* k_norm = nullptr;
};

struct Shape {
  int32_t hidden = 0;
  int32_t intermediate = 0;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab = 0;
  float eps = 0;

  int32_t group() const { return num_heads / num_kv_heads; }
  int64_t hidden_padded() const { return padded(hidden); }
  int64_t head_padded() const { return padded(head_dim); }
  int64_t heads_width() const { return static_cast<int64_t>(num_heads) * head_dim; }
};

// Keys and values of one sequence as hambench.engine.kvcache lays them out: [layers, KVH, capacity, Dh] each. A row of i8
// has a bfloat16 scale behind its codes.
struct Cache {
  void* keys = nullptr;
  void* values = nullptr;
  Type type = Type::f32;
  int64_t capacity = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;

  size_t element_bytes() const { return type == Type::f32 ? 4 : type == Type::bf16 ? 2 : 1; }
  size_t row_bytes() const { return head_dim * element_bytes() + (type == Type::i8 ? 2 : 0); }
  size_t offset(int32_t layer, int32_t head, int64_t slot) const {
    return (((static_cast<size_t>(layer) * num_kv_heads + head) * capacity) + slot) * row_bytes();
  }
  char* key(int32_t layer, int32_t head, int64_t slot) const {
    return static_cast<char*>(keys) + offset(layer, head, slot);
  }
  char* value(int32_t layer, int32_t head, int64_t slot) const {
    return static_cast<char*>(values) + offset(layer, head, slot);
  }
};

// The rows of one sequence in a forward over several.
struct Part {
  Cache cache;
  int64_t past = 0;  // slots in use before
  int32_t first_row = 0;
  int32_t num_rows = 0;

  int32_t num_chunks() const { return static_cast<int32_t>((past + num_rows + kChunk - 1) / kChunk); }
};

// The most probable token of a row, as far as it was looked at.
struct Best {
  float logit;
  int32_t token;
  int32_t is_nan;  // whether a logit was NaN
};

// A chunk of a row's logits: its most probable token, and how much all of them weigh next to it.
struct Weighed {
  Best best;
  float sum;  // of exp(logit - best.logit)
};

}  // namespace hb
