// Products of int8 weights with rows that are rounded to 15 bits.
//
// A row is rounded in groups of 128 inputs, each with a scale of its own. The sum of a group's products is a whole number
// that fits 32 bits, so no order of additions matters within a group; groups are added in the order of inputs. So every
// instruction set multiplies as it likes and AVX2 and AVX-512 give the same bits, with VNNI or without.
//
// Packed weights are codes + 128, which is what VNNI and widening by zeros need. What that adds to a group's sum is 128
// times the sum of the row's codes, which is kept behind them.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using hb::kBlock;
using hb::kGroupInputs;

constexpr float kMostCode = 16383.0f;
constexpr float kSmallest = 1e-30f;  // a group with nothing larger is taken for zeros: its inverse would not be finite
constexpr int kCodesAhead = 2048;    // bytes between what is multiplied and what is fetched

// One row's codes: of each input 16 bits, or where VNNI multiplies, 8 high bits of all inputs and then 7 low bits of all.
struct Codes {
  const char* values;
  const float* scales;     // of each group
  const int32_t* surplus;  // of each group: 128 times the sum of its codes
};

HB_INLINE Codes codes_of(const char* row, int inputs) {
  const char* behind = row + 2 * static_cast<int64_t>(inputs);
  return {row, reinterpret_cast<const float*>(behind),
          reinterpret_cast<const int32_t*>(behind + sizeof(float) * hb::num_groups(inputs))};
}

HB_INLINE bool has_vnni() {
#if defined(HB_ISA_AVX512)
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

// rounds one padded row; a NaN or infinity makes its group's scale NaN
void encode_row(const float* row, int inputs, bool split, char* to) {
  const Codes codes = codes_of(to, inputs);
  auto* scales = const_cast<float*>(codes.scales);
  auto* surplus = const_cast<int32_t*>(codes.surplus);
  auto* whole = reinterpret_cast<int16_t*>(to);
  auto* high = reinterpret_cast<int8_t*>(to);
  auto* low = high + inputs;
  for (int first = 0, group = 0; first < inputs; first += kGroupInputs, ++group) {
    const int end = first + kGroupInputs < inputs ? first + kGroupInputs : inputs;
    Wide most = w_zero(), wrong = w_zero();
    for (int i = first; i < end; i += kWide) {
      const Wide x = w_load(row + i);
      most = w_max(w_max(x, w_sub(w_zero(), x)), most);
      wrong = w_fma(x, w_zero(), wrong);
    }
    alignas(64) float lane[kWide];
    w_store(lane, most);
    float largest = lane[0];
    for (int i = 1; i < kWide; ++i) {
      largest = lane[i] > largest ? lane[i] : largest;
    }
    const bool nothing = largest < kSmallest;
    scales[group] = (nothing ? 0.0f : largest / kMostCode) + w_sum(wrong);
    const Native inverse = n_splat(nothing ? 0.0f : kMostCode / largest);
    // adding and taking away 1.5 * 2^23 rounds to a whole number on every machine alike
    const Native magic = n_splat(12582912.0f);
    int32_t sum = 0;
    for (int i = first; i < end; i += kWide) {
      for (int h = 0; h < kParts; ++h) {
        Native y = n_sub(n_add(n_mul(n_load(row + i + h * kNative), inverse), magic), magic);
        // of NaN the bound
        y = n_min(n_max(y, n_splat(-kMostCode)), n_splat(kMostCode));
        n_store(lane + h * kNative, y);
      }
      for (int j = 0; j < kWide; ++j) {
        const auto code = static_cast<int32_t>(lane[j]);
        sum += code;
        if (split) {
          high[i + j] = static_cast<int8_t>(code >> 7);
          low[i + j] = static_cast<int8_t>(code & 127);
        } else {
          whole[i + j] = static_cast<int16_t>(code);
        }
      }
    }
    surplus[group] = 128 * sum;
  }
}

#if defined(HB_ISA_AVX512)

// tile[b][t][o] for kBlocks blocks and kRows rows whose codes are split
template <int kRows, int kBlocks>
__attribute__((target("avx512vnni"))) void dot_split(const char* block, size_t block_bytes, int inputs, const char* rows,
                                                     int64_t stride, float* tile, int64_t tile_stride) {
  Native total[kBlocks][kRows];
  for (int b = 0; b < kBlocks; ++b) {
    for (int t = 0; t < kRows; ++t) {
      total[b][t] = n_zero();
    }
  }
  for (int first = 0, group = 0; first < inputs; first += kGroupInputs, ++group) {
    const int end = first + kGroupInputs < inputs ? first + kGroupInputs : inputs;
    __m512i high[kBlocks][kRows], low[kBlocks][kRows];
    for (int t = 0; t < kRows; ++t) {
      const __m512i surplus = _mm512_set1_epi32(codes_of(rows + t * stride, inputs).surplus[group]);
      for (int b = 0; b < kBlocks; ++b) {
        high[b][t] = _mm512_setzero_si512();
        low[b][t] = _mm512_sub_epi32(_mm512_setzero_si512(), surplus);
      }
    }
#pragma GCC unroll 2
    for (int k = first; k < end; k += 4) {
      __m512i weights[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        const char* here = block + b * block_bytes + static_cast<size_t>(k) * kBlock;
        __builtin_prefetch(here + kCodesAhead);
        weights[b] = _mm512_loadu_si512(here);
      }
      for (int t = 0; t < kRows; ++t) {
        const char* row = rows + t * stride + k;
        int32_t four[2];
        std::memcpy(&four[0], row, sizeof(int32_t));
        std::memcpy(&four[1], row + inputs, sizeof(int32_t));
        for (int b = 0; b < kBlocks; ++b) {
          high[b][t] = _mm512_dpbusd_epi32(high[b][t], weights[b], _mm512_set1_epi32(four[0]));
          low[b][t] = _mm512_dpbusd_epi32(low[b][t], weights[b], _mm512_set1_epi32(four[1]));
        }
      }
    }
    for (int t = 0; t < kRows; ++t) {
      const Native scale = n_splat(codes_of(rows + t * stride, inputs).scales[group]);
      for (int b = 0; b < kBlocks; ++b) {
        const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[b][t], 7), low[b][t]);
        total[b][t] = n_fma(_mm512_cvtepi32_ps(sum), scale, total[b][t]);
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    for (int t = 0; t < kRows; ++t) {
      n_store(tile + b * tile_stride + t * kBlock, total[b][t]);
    }
  }
}

#endif

// sums[t][o] of weights and whole codes of inputs first..end-1 of one block
template <int kRows>
HB_INLINE void sum_group(const char* block, int first, int end, const char* rows, int64_t stride, int32_t (*sums)[kBlock]) {
#if defined(HB_ISA_AVX512) || defined(HB_ISA_AVX2)
  // as many quarters of four outputs at a time as there are registers for their sums, two for each output
  constexpr int kQuarters = kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;
  for (int quarter = 0; quarter < 4; quarter += kQuarters) {
    __m256i sum[kRows][kQuarters];
    for (int t = 0; t < kRows; ++t) {
      for (int q = 0; q < kQuarters; ++q) {
        sum[t][q] = _mm256_setzero_si256();
      }
    }
    for (int k = first; k < end; k += 4) {
      const char* here = block + static_cast<size_t>(k) * kBlock + quarter * 16;
      __builtin_prefetch(here + kCodesAhead);
      __m256i weights[kQuarters];
      for (int q = 0; q < kQuarters; ++q) {
        weights[q] = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(here + q * 16)));
      }
      for (int t = 0; t < kRows; ++t) {
        int64_t four;
        std::memcpy(&four, rows + t * stride + 2 * k, sizeof(four));
        const __m256i codes = _mm256_set1_epi64x(four);
        for (int q = 0; q < kQuarters; ++q) {
          sum[t][q] = _mm256_add_epi32(sum[t][q], _mm256_madd_epi16(weights[q], codes));
        }
      }
    }
    for (int t = 0; t < kRows; ++t) {
      for (int q = 0; q < kQuarters; ++q) {
        // two sums for each of four outputs; twice over after the addition, of which the lower half is kept
        const __m256i added = _mm256_hadd_epi32(sum[t][q], sum[t][q]);
        const __m128i four = _mm256_castsi256_si128(_mm256_permute4x64_epi64(added, 0xd8));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(sums[t] + (quarter + q) * 4), four);
      }
    }
  }
#else
  for (int t = 0; t < kRows; ++t) {
    const auto* codes = reinterpret_cast<const int16_t*>(rows + t * stride);
    int32_t sum[kBlock] = {};
    for (int k = first; k < end; k += 4) {
      const auto* weights = reinterpret_cast<const uint8_t*>(block) + static_cast<size_t>(k) * kBlock;
      for (int o = 0; o < kBlock; ++o) {
        for (int i = 0; i < 4; ++i) {
          sum[o] += static_cast<int32_t>(weights[o * 4 + i]) * codes[k + i];
        }
      }
    }
    std::memcpy(sums[t], sum, sizeof(sum));
  }
#endif
}

// tile[t][o] of one block for kRows rows of whole codes
template <int kRows>
void dot_whole(const char* block, int inputs, const char* rows, int64_t stride, float* tile) {
  for (int t = 0; t < kRows; ++t) {
    w_store(tile + t * kBlock, w_zero());
  }
  for (int first = 0, group = 0; first < inputs; first += kGroupInputs, ++group) {
    const int end = first + kGroupInputs < inputs ? first + kGroupInputs : inputs;
    alignas(64) int32_t sums[kRows][kBlock];
    sum_group<kRows>(block, first, end, rows, stride, sums);
    for (int t = 0; t < kRows; ++t) {
      const Codes codes = codes_of(rows + t * stride, inputs);
      alignas(64) float exact[kBlock];
      for (int o = 0; o < kBlock; ++o) {
        exact[o] = static_cast<float>(sums[t][o] - codes.surplus[group]);
      }
      float* total = tile + t * kBlock;
      w_store(total, w_fma(w_load(exact), w_splat(codes.scales[group]), w_load(total)));
    }
  }
}

// tile[b][t][o] of blocks of int8 weights for kRows rows that encode_row rounded
template <int kRows>
void dot_codes(const char* block, size_t block_bytes, int num_blocks, int inputs, const char* rows, int64_t stride,
               float* tile, int64_t tile_stride) {
#if defined(HB_ISA_AVX512)
  if (has_vnni()) {
    constexpr int kTogether = kRows <= 4 ? 2 : 1;
    for (int b = 0; b < num_blocks; b += kTogether) {
      if (kTogether == 2 && b + 1 == num_blocks) {
        dot_split<kRows, 1>(block + b * block_bytes, block_bytes, inputs, rows, stride, tile + b * tile_stride, tile_stride);
      } else {
        dot_split<kRows, kTogether>(block + b * block_bytes, block_bytes, inputs, rows, stride, tile + b * tile_stride,
                                    tile_stride);
      }
    }
    return;
  }
#endif
  for (int b = 0; b < num_blocks; ++b) {
    dot_whole<kRows>(block + b * block_bytes, inputs, rows, stride, tile + b * tile_stride);
  }
}

}  // namespace
