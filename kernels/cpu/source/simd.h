// Vectors of one instruction set. Every kernel is written once, against the names below, and compiled once per set.
//
// `Native` is one register of kNative floats. `Wide` is always 16 floats: one register of AVX-512, two of AVX2. Sums over
// the lanes of a `Wide` add lanes 8 apart, then 4, 2 and 1 apart, whatever the registers are. So AVX2 and AVX-512 give
// the same bits. The portable set has no fused multiply-add and gives others.
//
// Nothing here may be an inline function or a template of the standard library: the linker keeps one copy of such a
// function for the whole library, and that copy might need instructions that the machine at hand lacks.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(HB_ISA_AVX512) || defined(HB_ISA_AVX2)
#include <immintrin.h>
#endif

#define HB_INLINE static inline __attribute__((always_inline))

namespace {

#if defined(HB_ISA_AVX512)

constexpr int kNative = 16;
using Native = __m512;

HB_INLINE Native n_zero() { return _mm512_setzero_ps(); }
HB_INLINE Native n_splat(float x) { return _mm512_set1_ps(x); }
HB_INLINE Native n_load(const float* p) { return _mm512_loadu_ps(p); }
HB_INLINE void n_store(float* p, Native a) { _mm512_storeu_ps(p, a); }
HB_INLINE Native n_add(Native a, Native b) { return _mm512_add_ps(a, b); }
HB_INLINE Native n_sub(Native a, Native b) { return _mm512_sub_ps(a, b); }
HB_INLINE Native n_mul(Native a, Native b) { return _mm512_mul_ps(a, b); }
HB_INLINE Native n_div(Native a, Native b) { return _mm512_div_ps(a, b); }
HB_INLINE Native n_fma(Native a, Native b, Native c) { return _mm512_fmadd_ps(a, b, c); }
// of two numbers one of which is NaN, the second
HB_INLINE Native n_max(Native a, Native b) { return _mm512_max_ps(a, b); }
HB_INLINE Native n_min(Native a, Native b) { return _mm512_min_ps(a, b); }
// x where it is not below the bound (or is NaN), else zero
HB_INLINE Native n_zero_below(Native keep, Native x, Native bound) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), keep);
}
// 2^n for whole n in -126..127
HB_INLINE Native n_exp2_whole(Native n) {
  __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_castsi512_ps(bits);
}
HB_INLINE Native n_from_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
HB_INLINE Native n_from_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// kNative pairs of bfloat16 apart: first elements, second elements
HB_INLINE void n_from_bf16_pairs(const uint16_t* p, Native& first, Native& second) {
  __m512i both = _mm512_loadu_si512(p);
  first = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  second = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

#elif defined(HB_ISA_AVX2)

constexpr int kNative = 8;
using Native = __m256;

HB_INLINE Native n_zero() { return _mm256_setzero_ps(); }
HB_INLINE Native n_splat(float x) { return _mm256_set1_ps(x); }
HB_INLINE Native n_load(const float* p) { return _mm256_loadu_ps(p); }
HB_INLINE void n_store(float* p, Native a) { _mm256_storeu_ps(p, a); }
HB_INLINE Native n_add(Native a, Native b) { return _mm256_add_ps(a, b); }
HB_INLINE Native n_sub(Native a, Native b) { return _mm256_sub_ps(a, b); }
HB_INLINE Native n_mul(Native a, Native b) { return _mm256_mul_ps(a, b); }
HB_INLINE Native n_div(Native a, Native b) { return _mm256_div_ps(a, b); }
HB_INLINE Native n_fma(Native a, Native b, Native c) { return _mm256_fmadd_ps(a, b, c); }
HB_INLINE Native n_max(Native a, Native b) { return _mm256_max_ps(a, b); }
HB_INLINE Native n_min(Native a, Native b) { return _mm256_min_ps(a, b); }
HB_INLINE Native n_zero_below(Native keep, Native x, Native bound) {
  return _mm256_and_ps(keep, _mm256_cmp_ps(x, bound, _CMP_NLT_UQ));
}
HB_INLINE Native n_exp2_whole(Native n) {
  __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_castsi256_ps(bits);
}
HB_INLINE Native n_from_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
HB_INLINE Native n_from_i8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
HB_INLINE void n_from_bf16_pairs(const uint16_t* p, Native& first, Native& second) {
  __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  first = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  second = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

#else  // portable: loops of a fixed length, which compilers turn into whatever vectors the machine has

constexpr int kNative = 16;
struct Native {
  float lane[kNative];
};

HB_INLINE float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
#define HB_LANES(expression)                  \
  Native r;                                   \
  for (int i = 0; i < kNative; ++i) {         \
    r.lane[i] = expression;                   \
  }                                           \
  return r
HB_INLINE Native n_splat(float x) { HB_LANES(x); }
HB_INLINE Native n_zero() { return n_splat(0.0f); }
HB_INLINE Native n_load(const float* p) { HB_LANES(p[i]); }
HB_INLINE void n_store(float* p, const Native& a) {
  for (int i = 0; i < kNative; ++i) {
    p[i] = a.lane[i];
  }
}
HB_INLINE Native n_add(const Native& a, const Native& b) { HB_LANES(a.lane[i] + b.lane[i]); }
HB_INLINE Native n_sub(const Native& a, const Native& b) { HB_LANES(a.lane[i] - b.lane[i]); }
HB_INLINE Native n_mul(const Native& a, const Native& b) { HB_LANES(a.lane[i] * b.lane[i]); }
HB_INLINE Native n_div(const Native& a, const Native& b) { HB_LANES(a.lane[i] / b.lane[i]); }
HB_INLINE Native n_fma(const Native& a, const Native& b, const Native& c) {
  HB_LANES(a.lane[i] * b.lane[i] + c.lane[i]);
}
HB_INLINE Native n_max(const Native& a, const Native& b) { HB_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
HB_INLINE Native n_min(const Native& a, const Native& b) { HB_LANES(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
HB_INLINE Native n_zero_below(const Native& keep, const Native& x, const Native& bound) {
  HB_LANES(x.lane[i] < bound.lane[i] ? 0.0f : keep.lane[i]);
}
HB_INLINE Native n_exp2_whole(const Native& n) {
  // NaN is no whole number: what it gives is multiplied by NaN later
  HB_LANES(float_of_bits(static_cast<uint32_t>(n.lane[i] == n.lane[i] ? static_cast<int>(n.lane[i]) + 127 : 127) << 23));
}
HB_INLINE Native n_from_bf16(const uint16_t* p) { HB_LANES(float_of_bits(static_cast<uint32_t>(p[i]) << 16)); }
HB_INLINE Native n_from_i8(const int8_t* p) { HB_LANES(static_cast<float>(p[i])); }
HB_INLINE void n_from_bf16_pairs(const uint16_t* p, Native& first, Native& second) {
  for (int i = 0; i < kNative; ++i) {
    first.lane[i] = float_of_bits(static_cast<uint32_t>(p[2 * i]) << 16);
    second.lane[i] = float_of_bits(static_cast<uint32_t>(p[2 * i + 1]) << 16);
  }
}
#undef HB_LANES

#endif

constexpr int kWide = 16;
constexpr int kParts = kWide / kNative;

struct Wide {
  Native part[kParts];
};

#define HB_PARTS(expression)             \
  Wide r;                                \
  for (int h = 0; h < kParts; ++h) {     \
    r.part[h] = expression;              \
  }                                      \
  return r
HB_INLINE Wide w_splat(float x) { HB_PARTS(n_splat(x)); }
HB_INLINE Wide w_zero() { HB_PARTS(n_zero()); }
HB_INLINE Wide w_load(const float* p) { HB_PARTS(n_load(p + h * kNative)); }
HB_INLINE void w_store(float* p, const Wide& a) {
  for (int h = 0; h < kParts; ++h) {
    n_store(p + h * kNative, a.part[h]);
  }
}
HB_INLINE Wide w_add(const Wide& a, const Wide& b) { HB_PARTS(n_add(a.part[h], b.part[h])); }
HB_INLINE Wide w_sub(const Wide& a, const Wide& b) { HB_PARTS(n_sub(a.part[h], b.part[h])); }
HB_INLINE Wide w_mul(const Wide& a, const Wide& b) { HB_PARTS(n_mul(a.part[h], b.part[h])); }
HB_INLINE Wide w_div(const Wide& a, const Wide& b) { HB_PARTS(n_div(a.part[h], b.part[h])); }
HB_INLINE Wide w_fma(const Wide& a, const Wide& b, const Wide& c) { HB_PARTS(n_fma(a.part[h], b.part[h], c.part[h])); }
HB_INLINE Wide w_max(const Wide& a, const Wide& b) { HB_PARTS(n_max(a.part[h], b.part[h])); }
HB_INLINE Wide w_from_bf16(const uint16_t* p) { HB_PARTS(n_from_bf16(p + h * kNative)); }

// e^x within 2 units in the last place; zero below -87.3, where the result would not be normal; NaN stays NaN
HB_INLINE Native n_exp(const Native& x) {
  const Native lowest = n_splat(-87.3f);
  Native y = n_min(n_splat(88.3f), n_max(lowest, x));
  // adding and taking away 1.5 * 2^23 rounds to a whole number on every machine alike
  const Native magic = n_splat(12582912.0f);
  Native n = n_sub(n_fma(y, n_splat(1.44269504f), magic), magic);
  Native r = n_fma(n, n_splat(-0.693359375f), y);
  r = n_fma(n, n_splat(2.12194440e-4f), r);
  Native p = n_splat(1.9875691500e-4f);
  p = n_fma(p, r, n_splat(1.3981999507e-3f));
  p = n_fma(p, r, n_splat(8.3334519073e-3f));
  p = n_fma(p, r, n_splat(4.1665795894e-2f));
  p = n_fma(p, r, n_splat(1.6666665459e-1f));
  p = n_fma(p, r, n_splat(5.0000001201e-1f));
  p = n_fma(n_mul(r, r), p, n_add(r, n_splat(1.0f)));
  return n_zero_below(n_mul(p, n_exp2_whole(n)), x, lowest);
}
HB_INLINE Wide w_exp(const Wide& x) { HB_PARTS(n_exp(x.part[h])); }
#undef HB_PARTS

HB_INLINE float w_sum(const Wide& a) {
  float lane[kWide];
  w_store(lane, a);
  for (int width = kWide / 2; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) {
      lane[i] += lane[i + width];
    }
  }
  return lane[0];
}

// the sum of each of 16 vectors, in one vector; each in the order of w_sum
HB_INLINE Wide w_sums(const Wide* v) {
#if defined(HB_ISA_AVX512)
  Native half[8], quarter[4], pair[2];
  for (int k = 0; k < 8; ++k) {
    Native a = v[k].part[0], b = v[k + 8].part[0];
    half[k] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  }
  for (int k = 0; k < 4; ++k) {
    quarter[k] =
        _mm512_add_ps(_mm512_shuffle_f32x4(half[k], half[k + 4], 0x88), _mm512_shuffle_f32x4(half[k], half[k + 4], 0xdd));
  }
  for (int k = 0; k < 2; ++k) {
    Native a = quarter[2 * k], b = quarter[2 * k + 1];
    pair[k] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }
  Native r = _mm512_add_ps(_mm512_shuffle_ps(pair[0], pair[1], 0x88), _mm512_shuffle_ps(pair[0], pair[1], 0xdd));
  return Wide{{_mm512_shuffle_f32x4(r, r, 0xd8)}};
#elif defined(HB_ISA_AVX2)
  Wide r;
  for (int h = 0; h < 2; ++h) {
    Native whole[8], half[4], pair[2];
    for (int k = 0; k < 8; ++k) {
      whole[k] = _mm256_add_ps(v[8 * h + k].part[0], v[8 * h + k].part[1]);
    }
    for (int k = 0; k < 4; ++k) {
      half[k] = _mm256_add_ps(_mm256_permute2f128_ps(whole[k], whole[k + 4], 0x20),
                              _mm256_permute2f128_ps(whole[k], whole[k + 4], 0x31));
    }
    for (int k = 0; k < 2; ++k) {
      Native a = half[2 * k], b = half[2 * k + 1];
      pair[k] = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    }
    r.part[h] = _mm256_add_ps(_mm256_shuffle_ps(pair[0], pair[1], 0x88), _mm256_shuffle_ps(pair[0], pair[1], 0xdd));
  }
  return r;
#else
  Wide r;
  for (int k = 0; k < kWide; ++k) {
    r.part[0].lane[k] = w_sum(v[k]);
  }
  return r;
#endif
}

// A value that is used several times. Compilers would rather read it from memory for each use, twice as many reads as a
// core does in the time of the products. Other sets have too few registers to keep it.
HB_INLINE Native n_keep(Native x) {
#if defined(HB_ISA_AVX512)
  asm("" : "+v"(x));
#endif
  return x;
}

HB_INLINE float bf16_to_float(uint16_t x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// rounded to nearest, ties to even
HB_INLINE uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace
