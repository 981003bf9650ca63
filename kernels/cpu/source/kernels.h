// The operations that are compiled once per instruction set. A forward calls them through one table.
#pragma once

#include "types.h"

namespace hb {

struct Kernels {
  const char* name;

  // out[t][o] = (W x[t])[o] for the outputs of blocks first..last-1, scaled and biased. `codes` has room for the rows as
  // int8 weights want them, code_bytes(W.inputs) each; others leave it alone
  void (*project)(const Matrix& weight, const float* rows, int64_t stride, int num_rows, int first, int last, char* codes,
                  float* out, int64_t out_stride);
  // adds the same to out
  void (*project_add)(const Matrix& weight, const float* rows, int64_t stride, int num_rows, int first, int last, char* codes,
                      float* out, int64_t out_stride);
  // out[t][o] = silu(gate x[t])[o] * (up x[t])[o] for pairs of blocks first..last-1
  void (*project_gated)(const Matrix& weight, const float* rows, int64_t stride, int num_rows, int first, int last,
                        char* codes, float* out, int64_t out_stride);
  // the largest of outputs 0..vocab-1 in blocks first..last-1, the lowest id of equals; best[t] is overwritten
  void (*project_best)(const Matrix& weight, const float* rows, int64_t stride, int num_rows, int first, int last, char* codes,
                       int vocab, Best* best);
  // the same of logits that are there already, those of ids first..first + count - 1, up to kLogitChunk; and their weight
  void (*weigh)(const float* logits, int first, int count, Weighed* weighed);

  // x / sqrt(mean(x^2) + eps) * weight of one padded row
  void (*rms_norm)(const float* row, const float* weight, int size, float eps, float* out);
  void (*silu)(float* values, int64_t count);
  // RoPE of one head in the split-halves convention
  void (*rotate)(float* head, const float* cosines, const float* sines, int half);
  void (*scale)(float* values, float factor, int64_t count);
  // one row of `size` elements of a float32 or bfloat16 array, as float32; and back
  void (*widen)(const void* from, Type type, int64_t size, float* to);
  void (*narrow)(const float* from, Type type, int64_t size, void* to);

  // One attention task: slots of one chunk of one key/value head against all rows of a part.
  // q: rows of heads of padded size, scaled; partials: [T][H][max_chunks][kPartialHead + padded Dh]
  void (*attend)(const Part& part, const Shape& shape, int layer, int kv_head, int chunk, const float* q, int64_t q_stride,
                 float* partials, int max_chunks);
  // the heads' outputs [H * Dh] of one row from the partials of its chunks, merged in the order of slots
  void (*merge_partials)(const Shape& shape, const float* partials, int num_chunks, int max_chunks, float* heads);
  // softmax(q . k) v over `num` rows, head by head: q [width], keys and values [num][width]
  void (*mix_few)(const float* q, const float* keys, const float* values, int64_t stride, int num, int num_heads, int width,
                  float* out);
};

extern const Kernels kernels_portable;
#ifdef HB_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// the best set that the machine runs, or the one named; nothing if there is no such set or the machine lacks it
const Kernels* find_kernels(const char* name);

}  // namespace hb
