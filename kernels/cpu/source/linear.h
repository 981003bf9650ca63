// Products of packed weights with a few rows of activations.
//
// One order of additions per output, whatever the number of rows or threads: even inputs in one sum, odd inputs in another,
// each in the order of inputs, then the two together; of int8 weights as codes.h says. A block of 16 outputs is read once
// from memory for all rows.
#pragma once

#include "codes.h"
#include "kernels.h"
#include "simd.h"

namespace {

using hb::kBlock;
using hb::Matrix;
using hb::Type;

// Rows that are multiplied at a time, as many as there are registers for two sums each; and up to how many of them two
// blocks of outputs go together, which reads memory faster and hides the latency of a sum.
#if defined(HB_ISA_AVX512)
constexpr int kMostRows = 8, kMostInPairs = 6;
#elif defined(HB_ISA_AVX2)
constexpr int kMostRows = 6, kMostInPairs = 1;
#else
constexpr int kMostRows = 4, kMostInPairs = 0;
#endif
constexpr int kMostWhole = 3;   // rows up to which a block of two registers is multiplied in one go
constexpr int kAhead = 2048;    // bytes between what is multiplied and what is fetched

template <Type kType>
HB_INLINE void load_two_inputs(const char* block, int input, int part, Native& first, Native& second) {
  if constexpr (kType == Type::bf16) {
    const auto* p = reinterpret_cast<const uint16_t*>(block) + input * kBlock + part * 2 * kNative;
    n_from_bf16_pairs(p, first, second);
  } else {
    const auto* p = reinterpret_cast<const float*>(block) + input * kBlock + part * kNative;
    first = n_load(p);
    second = n_load(p + kBlock);
  }
}

template <Type kType>
HB_INLINE void fetch_ahead(const char* block, int input) {
  constexpr int kBytes = kBlock * (kType == Type::f32 ? 4 : 2);
  const char* p = block + static_cast<size_t>(input) * kBytes + kAhead;
  __builtin_prefetch(p);
  if constexpr (kType == Type::f32) {
    __builtin_prefetch(p + 64);
  }
}

// tile[b][t][o] for kBlocks blocks and kRows rows; `part` is the first of kWidth registers of a block
template <Type kType, int kRows, int kBlocks, int kWidth>
HB_INLINE void dot_parts(const char* block, size_t block_bytes, int inputs, const float* rows, int64_t stride, int part,
                         float* tile, int64_t tile_stride) {
  Native even[kBlocks][kRows][kWidth], odd[kBlocks][kRows][kWidth];
  for (int b = 0; b < kBlocks; ++b) {
    for (int t = 0; t < kRows; ++t) {
      for (int h = 0; h < kWidth; ++h) {
        even[b][t][h] = odd[b][t][h] = n_zero();
      }
    }
  }
#pragma GCC unroll 2
  for (int k = 0; k < inputs; k += 2) {
    Native w_even[kBlocks][kWidth], w_odd[kBlocks][kWidth];
    for (int b = 0; b < kBlocks; ++b) {
      const char* here = block + b * block_bytes;
      fetch_ahead<kType>(here, k);
      for (int h = 0; h < kWidth; ++h) {
        load_two_inputs<kType>(here, k, part + h, w_even[b][h], w_odd[b][h]);
      }
    }
    for (int t = 0; t < kRows; ++t) {
      const Native x_even = n_splat(rows[t * stride + k]), x_odd = n_splat(rows[t * stride + k + 1]);
      for (int b = 0; b < kBlocks; ++b) {
        for (int h = 0; h < kWidth; ++h) {
          even[b][t][h] = n_fma(w_even[b][h], x_even, even[b][t][h]);
          odd[b][t][h] = n_fma(w_odd[b][h], x_odd, odd[b][t][h]);
        }
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    for (int t = 0; t < kRows; ++t) {
      for (int h = 0; h < kWidth; ++h) {
        n_store(tile + b * tile_stride + t * kBlock + (part + h) * kNative, n_add(even[b][t][h], odd[b][t][h]));
      }
    }
  }
}

template <Type kType, int kRows>
void dot_rows(const char* block, size_t block_bytes, int num_blocks, int inputs, const float* rows, int64_t stride,
              float* tile, int64_t tile_stride) {
  constexpr int kTogether = kRows <= kMostInPairs ? 2 : 1;
  constexpr int kWidth = kRows <= kMostWhole ? kParts : 1;
  for (int b = 0; b < num_blocks; b += kTogether) {
    for (int part = 0; part < kParts; part += kWidth) {
      if (kTogether == 2 && b + 1 == num_blocks) {
        dot_parts<kType, kRows, 1, kWidth>(block + b * block_bytes, block_bytes, inputs, rows, stride, part,
                                           tile + b * tile_stride, tile_stride);
      } else {
        dot_parts<kType, kRows, kTogether, kWidth>(block + b * block_bytes, block_bytes, inputs, rows, stride, part,
                                                   tile + b * tile_stride, tile_stride);
      }
    }
  }
}

// What a weight is multiplied with: rows [T][stride], and of int8 weights their codes.
struct Operand {
  const float* rows;
  int64_t stride;
  const char* codes;
  int64_t codes_stride;
};

HB_INLINE Operand operand_of(const Matrix& weight, const float* rows, int64_t stride, int num_rows, char* codes) {
  const int64_t codes_stride = hb::code_bytes(weight.inputs);
  if (weight.type == Type::i8) {
    HB_ASSERT(codes != nullptr);
    for (int t = 0; t < num_rows; ++t) {
      encode_row(rows + t * stride, weight.inputs, has_vnni(), codes + t * codes_stride);
    }
  }
  return {rows, stride, codes, codes_stride};
}

template <Type kType>
void dot_typed(const Matrix& weight, int first_block, int num_blocks, const Operand& operand, int num_rows, float* tile) {
  const char* block = weight.block(first_block);
  const size_t bytes = weight.block_bytes();
  const int64_t tile_stride = static_cast<int64_t>(num_rows) * kBlock;
  // more rows than registers are shared out evenly
  const int passes = (num_rows + kMostRows - 1) / kMostRows;
  for (int pass = 0, row = 0; pass < passes; ++pass) {
    const int count = (num_rows - row + passes - pass - 1) / (passes - pass);
    float* out = tile + static_cast<int64_t>(row) * kBlock;
    switch (count) {
#define HB_CASE(n)                                                                                    \
  case n:                                                                                             \
    if constexpr (n <= kMostRows && kType == Type::i8) {                                              \
      const char* x = operand.codes + row * operand.codes_stride;                                     \
      dot_codes<n>(block, bytes, num_blocks, weight.inputs, x, operand.codes_stride, out, tile_stride); \
    } else if constexpr (n <= kMostRows) {                                                            \
      const float* x = operand.rows + row * operand.stride;                                           \
      dot_rows<kType, n>(block, bytes, num_blocks, weight.inputs, x, operand.stride, out, tile_stride); \
    }                                                                                                 \
    break;
      HB_CASE(1)
      HB_CASE(2)
      HB_CASE(3)
      HB_CASE(4)
      HB_CASE(5)
      HB_CASE(6)
      HB_CASE(7)
      HB_CASE(8)
#undef HB_CASE
    }
    row += count;
  }
}

// the finished outputs of one or two blocks: tile[b][t][o], scaled and biased
HB_INLINE void dot(const Matrix& weight, int first_block, int num_blocks, const Operand& operand, int num_rows, float* tile) {
  HB_ASSERT(num_rows >= 1 && num_rows <= hb::kMaxRows && first_block >= 0);
  HB_ASSERT((first_block + num_blocks) * kBlock <= weight.outputs);
  switch (weight.type) {
    case Type::f32:
      dot_typed<Type::f32>(weight, first_block, num_blocks, operand, num_rows, tile);
      break;
    case Type::bf16:
      dot_typed<Type::bf16>(weight, first_block, num_blocks, operand, num_rows, tile);
      break;
    case Type::i8:
      dot_typed<Type::i8>(weight, first_block, num_blocks, operand, num_rows, tile);
      break;
  }
  for (int b = 0; b < num_blocks; ++b) {
    const int64_t output = static_cast<int64_t>(first_block + b) * kBlock;
    for (int t = 0; t < num_rows; ++t) {
      float* values = tile + (static_cast<int64_t>(b) * num_rows + t) * kBlock;
      if (weight.scales != nullptr) {
        w_store(values, w_mul(w_load(values), w_load(weight.scales + output)));
      }
      if (weight.bias != nullptr) {
        w_store(values, w_add(w_load(values), w_load(weight.bias + output)));
      }
    }
  }
}

constexpr int kAtOnce = 2;  // blocks of one call of dot

#define HB_FOR_BLOCKS(body)                                                              \
  alignas(64) float tile[kAtOnce * hb::kMaxRows * kBlock];                               \
  const Operand operand = operand_of(weight, rows, stride, num_rows, codes);             \
  for (int block = first; block < last; block += kAtOnce) {                              \
    const int count = last - block < kAtOnce ? last - block : kAtOnce;                   \
    dot(weight, block, count, operand, num_rows, tile);                                  \
    for (int b = 0; b < count; ++b) {                                                    \
      for (int t = 0; t < num_rows; ++t) {                                               \
        const float* values = tile + (static_cast<int64_t>(b) * num_rows + t) * kBlock;  \
        const int64_t output = static_cast<int64_t>(block + b) * kBlock;                 \
        body                                                                             \
      }                                                                                  \
    }                                                                                    \
  }

void project(const Matrix& weight, const float* rows, int64_t stride, int num_rows, int first, int last, char* codes,
             float* out, int64_t out_stride) {
  HB_FOR_BLOCKS({ w_store(out + t * out_stride + output, w_load(values)); })
}

void project_add(const Matrix& weight, const float* rows, int64_t stride, int num_rows, int first, int last, char* codes,
                 float* out, int64_t out_stride) {
  HB_FOR_BLOCKS({
    float* sum = out + t * out_stride + output;
    w_store(sum, w_add(w_load(sum), w_load(values)));
  })
}

HB_INLINE Wide silu_of(const Wide& x) {
  return w_div(x, w_add(w_splat(1.0f), w_exp(w_sub(w_zero(), x))));
}

void project_gated(const Matrix& weight, const float* rows, int64_t stride, int num_rows, int first, int last, char* codes,
                   float* out, int64_t out_stride) {
  alignas(64) float tile[2 * hb::kMaxRows * kBlock];
  const Operand operand = operand_of(weight, rows, stride, num_rows, codes);
  for (int pair = first; pair < last; ++pair) {
    dot(weight, 2 * pair, 2, operand, num_rows, tile);
    for (int t = 0; t < num_rows; ++t) {
      const Wide gate = w_load(tile + t * kBlock), up = w_load(tile + (num_rows + t) * kBlock);
      w_store(out + t * out_stride + static_cast<int64_t>(pair) * kBlock, w_mul(silu_of(gate), up));
    }
  }
}

// The largest of a row's values so far. By lane: the value, the number of its block, and whether there was a NaN, which no
// comparison would notice. A later equal value replaces none.
struct Largest {
  alignas(64) float value[kBlock];
  alignas(64) int32_t block[kBlock];
  alignas(64) float odd[kBlock];
};

HB_INLINE void begin_largest(Largest& largest) {
  for (int i = 0; i < kBlock; ++i) {
    largest.value[i] = -__builtin_inff();
    largest.block[i] = 0;
    largest.odd[i] = 0.0f;
  }
}

// takes in the first `valid` values of a block
HB_INLINE void take_block(Largest& largest, const float* values, int valid, int block) {
  float* most = largest.value;
  int32_t* place = largest.block;
  float* odd = largest.odd;
  if (valid >= kBlock) {
    for (int i = 0; i < kBlock; ++i) {
      const bool more = values[i] > most[i];
      most[i] = more ? values[i] : most[i];
      place[i] = more ? block : place[i];
      odd[i] = values[i] == values[i] ? odd[i] : 1.0f;
    }
  } else {
    for (int i = 0; i < valid; ++i) {
      if (values[i] > most[i]) {
        most[i] = values[i];
        place[i] = block;
      }
      odd[i] = values[i] == values[i] ? odd[i] : 1.0f;
    }
  }
}

// the largest of all lanes, the lowest id of equals; `none` is the id where nothing is above minus infinity
HB_INLINE hb::Best end_largest(const Largest& largest, int none) {
  hb::Best found{-__builtin_inff(), none, 0};
  for (int i = 0; i < kBlock; ++i) {
    const int32_t token = largest.block[i] * kBlock + i;
    if (largest.value[i] > found.logit || (largest.value[i] == found.logit && token < found.token)) {
      found.logit = largest.value[i];
      found.token = token;
    }
    found.is_nan |= largest.odd[i] != 0.0f;
  }
  return found;
}

void project_best(const Matrix& weight, const float* rows, int64_t stride, int num_rows, int first, int last, char* codes,
                  int vocab, hb::Best* best) {
  Largest largest[hb::kMaxRows];
  for (int t = 0; t < num_rows; ++t) {
    begin_largest(largest[t]);
  }
  HB_FOR_BLOCKS({
    take_block(largest[t], values, static_cast<int>(vocab - output < kBlock ? vocab - output : kBlock), block + b);
  })
  for (int t = 0; t < num_rows; ++t) {
    best[t] = end_largest(largest[t], vocab);
  }
}
#undef HB_FOR_BLOCKS

}  // namespace
