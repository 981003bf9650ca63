// Operations on single rows: norms, activations, weighing of logits, rotation, conversion.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.h"
#include "linear.h"
#include "simd.h"

namespace {

void rms_norm(const float* row, const float* weight, int size, float eps, float* out) {
  const int padded = static_cast<int>(hb::padded(size));
  Wide even = w_zero(), odd = w_zero();
  int i = 0;
  for (; i + 2 * kWide <= padded; i += 2 * kWide) {
    const Wide a = w_load(row + i), b = w_load(row + i + kWide);
    even = w_fma(a, a, even);
    odd = w_fma(b, b, odd);
  }
  if (i < padded) {
    const Wide a = w_load(row + i);
    even = w_fma(a, a, even);
  }
  const float mean = w_sum(w_add(even, odd)) / static_cast<float>(size);
  const Wide factor = w_splat(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i < padded; i += kWide) {
    w_store(out + i, w_mul(w_mul(w_load(row + i), factor), w_load(weight + i)));
  }
}

void silu(float* values, int64_t count) {
  for (int64_t i = 0; i < count; i += kWide) {
    w_store(values + i, silu_of(w_load(values + i)));
  }
}

void weigh(const float* logits, int first, int count, hb::Weighed* weighed) {
  HB_ASSERT(count >= 1 && count <= hb::kLogitChunk && first % kBlock == 0);
  Largest largest;
  begin_largest(largest);
  for (int i = 0; i < count; i += kBlock) {
    take_block(largest, logits + i, count - i, (first + i) / kBlock);
  }
  weighed->best = end_largest(largest, first + count);
  const Wide top = w_splat(weighed->best.logit);
  Wide even = w_zero(), odd = w_zero();
  int i = 0;
  for (; i + 2 * kWide <= count; i += 2 * kWide) {
    even = w_add(even, w_exp(w_sub(w_load(logits + i), top)));
    odd = w_add(odd, w_exp(w_sub(w_load(logits + i + kWide), top)));
  }
  // minus infinity behind the last logit weighs nothing
  alignas(64) float rest[2 * kWide];
  for (int j = 0; j < 2 * kWide; ++j) {
    rest[j] = i + j < count ? logits[i + j] : -__builtin_inff();
  }
  even = w_add(even, w_exp(w_sub(w_load(rest), top)));
  odd = w_add(odd, w_exp(w_sub(w_load(rest + kWide), top)));
  weighed->sum = w_sum(w_add(even, odd));
}

void rotate(float* head, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; ++i) {
    const float first = head[i], second = head[half + i];
    head[i] = first * cosines[i] - second * sines[i];
    head[half + i] = second * cosines[i] + first * sines[i];
  }
}

void scale_values(float* values, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] *= factor;
  }
}

void widen(const void* from, Type type, int64_t size, float* to) {
  widen_row(static_cast<const char*>(from), type, static_cast<int>(size), to);
}

void narrow(const float* from, Type type, int64_t size, void* to) {
  if (type == Type::bf16) {
    auto* p = static_cast<uint16_t*>(to);
    for (int64_t i = 0; i < size; ++i) {
      p[i] = float_to_bf16(from[i]);
    }
  } else if (type == Type::i8) {
    // a whole row of a cache: codes are multiples of the scale as it is stored
    float most = 0.0f;
    for (int64_t i = 0; i < size; ++i) {
      const float magnitude = std::fabs(from[i]);
      most = magnitude > most ? magnitude : most;
    }
    const uint16_t bits = float_to_bf16(most / 127.0f);
    const float scale = bf16_to_float(bits), divisor = scale == 0.0f ? 1.0f : scale;
    auto* codes = static_cast<int8_t*>(to);
    for (int64_t i = 0; i < size; ++i) {
      const float code = std::nearbyint(from[i] / divisor);
      codes[i] = static_cast<int8_t>(code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code);
    }
    std::memcpy(codes + size, &bits, sizeof(bits));
  } else {
    std::memcpy(to, from, static_cast<size_t>(size) * sizeof(float));
  }
}

}  // namespace
