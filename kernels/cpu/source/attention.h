// Attention over the KV cache in place.
//
// A task is one key/value head and one chunk of slots, against every row and query head that reads them. Its softmax is
// partial: a maximum, a sum and a weighted sum of values. The partials of a row are merged in the order of slots. Chunks
// begin at fixed slots, so a row's result does not depend on the rows next to it nor on which thread did what.
#pragma once

#include <cstring>

#include "kernels.h"
#include "simd.h"

namespace {

using hb::kChunk;
using hb::kMostHeadDim;
using hb::kPartialHead;
using hb::Part;
using hb::Shape;
using hb::Type;

constexpr int kGroup = 16;          // slots whose scores are worked out together

template <int kSize>
HB_INLINE void widen_whole(const uint16_t* from, float* to) {
  for (int i = 0; i < kSize; i += kWide) {
    w_store(to + i, w_from_bf16(from + i));
  }
}

HB_INLINE void widen_row(const char* from, Type type, int size, float* to) {
  if (type == Type::bf16) {
    const auto* p = reinterpret_cast<const uint16_t*>(from);
    // heads of the usual sizes: a loop would take as long as the work in it
    if (size == 64) {
      return widen_whole<64>(p, to);
    }
    if (size == 128) {
      return widen_whole<128>(p, to);
    }
    int i = 0;
    for (; i + kWide <= size; i += kWide) {
      w_store(to + i, w_from_bf16(p + i));
    }
    for (; i < size; ++i) {
      to[i] = bf16_to_float(p[i]);
    }
  } else if (type == Type::i8) {
    const auto* p = reinterpret_cast<const int8_t*>(from);
    uint16_t bits;
    std::memcpy(&bits, from + size, sizeof(bits));
    const float scale = bf16_to_float(bits);
    int i = 0;
    for (; i + kNative <= size; i += kNative) {
      n_store(to + i, n_mul(n_splat(scale), n_from_i8(p + i)));
    }
    for (; i < size; ++i) {
      to[i] = scale * static_cast<float>(p[i]);
    }
  } else {
    const auto* p = reinterpret_cast<const float*>(from);
    int i = 0;
    for (; i + kWide <= size; i += kWide) {
      w_store(to + i, w_load(p + i));
    }
    for (; i < size; ++i) {
      to[i] = p[i];
    }
  }
}

// fetches the index-th of `num` shares of some bytes
HB_INLINE void fetch_share(const char* from, size_t bytes, int index, int num) {
  const size_t lines = (bytes + 63) / 64, last = lines * (index + 1) / num;
  for (size_t i = lines * index / num; i < last; ++i) {
    __builtin_prefetch(from + i * 64);
  }
}

// the scores of kGroup keys for one query, both of a padded size
HB_INLINE Wide score_group(const float* q, const float* keys, int size) {
  Wide sums[kGroup];
  for (int s = 0; s < kGroup; ++s) {
    sums[s] = w_mul(w_load(q), w_load(keys + static_cast<int64_t>(s) * size));
  }
  for (int d = kWide; d < size; d += kWide) {
    const Wide part = w_load(q + d);
    for (int s = 0; s < kGroup; ++s) {
      sums[s] = w_fma(part, w_load(keys + static_cast<int64_t>(s) * size + d), sums[s]);
    }
  }
  return w_sums(sums);
}

// adds weights[s] * values[s] of `num` slots to the sums of kHeads queries
template <int kHeads>
HB_INLINE void mix_group(const float* weights, int64_t weights_stride, const float* values, int num, int size, float* sums,
                         int64_t sums_stride) {
  // four registers for each query: as many independent sums as hide the latency of one
  for (int d = 0; d < size; d += 4 * kNative) {
    const int parts = (size - d) / kNative < 4 ? (size - d) / kNative : 4;
    if (parts == 4) {
      Native sum[kHeads][4];
      for (int g = 0; g < kHeads; ++g) {
        for (int i = 0; i < 4; ++i) {
          sum[g][i] = n_load(sums + g * sums_stride + d + i * kNative);
        }
      }
      for (int s = 0; s < num; ++s) {
        Native value[4];
        for (int i = 0; i < 4; ++i) {
          value[i] = n_keep(n_load(values + static_cast<int64_t>(s) * size + d + i * kNative));
        }
        for (int g = 0; g < kHeads; ++g) {
          const Native weight = n_splat(weights[g * weights_stride + s]);
          for (int i = 0; i < 4; ++i) {
            sum[g][i] = n_fma(weight, value[i], sum[g][i]);
          }
        }
      }
      for (int g = 0; g < kHeads; ++g) {
        for (int i = 0; i < 4; ++i) {
          n_store(sums + g * sums_stride + d + i * kNative, sum[g][i]);
        }
      }
    } else {
      for (int i = 0; i < parts; ++i) {
        for (int g = 0; g < kHeads; ++g) {
          float* place = sums + g * sums_stride + d + i * kNative;
          Native sum = n_load(place);
          for (int s = 0; s < num; ++s) {
            const Native value = n_load(values + static_cast<int64_t>(s) * size + d + i * kNative);
            sum = n_fma(n_splat(weights[g * weights_stride + s]), value, sum);
          }
          n_store(place, sum);
        }
      }
    }
  }
}

void attend(const Part& part, const Shape& shape, int layer, int kv_head, int chunk, const float* q, int64_t q_stride,
            float* partials, int max_chunks) {
  const int size = static_cast<int>(shape.head_padded()), group = shape.group();
  const int64_t first_slot = static_cast<int64_t>(chunk) * kChunk;
  const int64_t end = part.past + part.num_rows;
  const int num_slots = static_cast<int>(end - first_slot < kChunk ? end - first_slot : kChunk);
  HB_ASSERT(num_slots > 0 && end <= part.cache.capacity && size <= kMostHeadDim);
  // rows whose own slot is before the chunk don't read it
  const int first_row = first_slot > part.past ? static_cast<int>(first_slot - part.past) : 0;
  const int num_queries = (part.num_rows - first_row) * group;
  const int64_t partial_size = kPartialHead + size, head_stride = max_chunks * partial_size;
  const size_t row_bytes = part.cache.row_bytes();
  const char* key = part.cache.key(layer, kv_head, first_slot);
  const char* value = part.cache.value(layer, kv_head, first_slot);

  alignas(64) float wide[kGroup * kMostHeadDim];
  alignas(64) float scores[hb::kMaxRows * 8][kChunk];
  // One row's scores take less time than memory: all is fetched at once. Between several rows' scores it is fetched bit by
  // bit, because a thread that waits for room to fetch does not multiply either.
  const bool bit_by_bit = part.num_rows > 1;
  // a model with more query heads per key/value head than there is room for takes its rows in several turns
  const int rows_at_once = (hb::kMaxRows * 8) / group;
  HB_ASSERT(rows_at_once >= 1);
  for (int turn = 0; turn < num_queries; turn += rows_at_once * group) {
    const int count = num_queries - turn < rows_at_once * group ? num_queries - turn : rows_at_once * group;
    for (int s0 = 0; s0 < num_slots; s0 += kGroup) {
      const int num = num_slots - s0 < kGroup ? num_slots - s0 : kGroup;
      for (int s = 0; s < kGroup; ++s) {
        float* to = wide + static_cast<int64_t>(s) * size;
        for (int i = shape.head_dim / kWide * kWide; i < size; i += kWide) {
          w_store(to + i, w_zero());
        }
        if (s < num) {
          if (!bit_by_bit) {
            // values are read next: they come while scores are worked out. Memory behind the slots is only fetched
            fetch_share(value + (s0 + s) * row_bytes, row_bytes, 0, 1);
            fetch_share(key + (s0 + s + kGroup) * row_bytes, row_bytes, 0, 1);
          }
          widen_row(key + (s0 + s) * row_bytes, part.cache.type, shape.head_dim, to);
        } else {
          for (int i = 0; i < size; i += kWide) {
            w_store(to + i, w_zero());
          }
        }
      }
      for (int n = 0; n < count; ++n) {
        if (bit_by_bit) {
          fetch_share(value + s0 * row_bytes, num * row_bytes, n, count);
          fetch_share(key + (s0 + kGroup) * row_bytes, num * row_bytes, n, count);
        }
        const int row = first_row + (turn + n) / group, head = kv_head * group + (turn + n) % group;
        const float* query = q + (part.first_row + row) * q_stride + static_cast<int64_t>(head) * size;
        w_store(scores[n] + s0, score_group(query, wide, size));
      }
    }
    for (int n = 0; n < count; ++n) {
      const int row = first_row + (turn + n) / group, head = kv_head * group + (turn + n) % group;
      const int64_t seen = part.past + row + 1 - first_slot;
      const int num = static_cast<int>(seen < num_slots ? seen : num_slots), whole = (num + kWide - 1) / kWide * kWide;
      float* weights = scores[n];
      for (int s = num; s < whole; ++s) {
        weights[s] = -__builtin_inff();
      }
      Wide largest = w_load(weights);
      for (int s = kWide; s < whole; s += kWide) {
        largest = w_max(largest, w_load(weights + s));
      }
      alignas(64) float lane[kWide];
      w_store(lane, largest);
      float most = lane[0];
      for (int i = 1; i < kWide; ++i) {
        most = lane[i] > most ? lane[i] : most;
      }
      Wide sum = w_zero();
      for (int s = 0; s < whole; s += kWide) {
        const Wide weight = w_exp(w_sub(w_load(weights + s), w_splat(most)));
        w_store(weights + s, weight);
        sum = w_add(sum, weight);
      }
      float* partial =
          partials + (static_cast<int64_t>(part.first_row + row) * shape.num_heads + head) * head_stride + chunk * partial_size;
      partial[0] = most;
      partial[1] = w_sum(sum);
      for (int i = 0; i < size; i += kWide) {
        w_store(partial + kPartialHead + i, w_zero());
      }
    }
    for (int s0 = 0; s0 < num_slots; s0 += kGroup) {
      const int num = num_slots - s0 < kGroup ? num_slots - s0 : kGroup;
      for (int s = 0; s < num; ++s) {
        float* to = wide + static_cast<int64_t>(s) * size;
        for (int i = shape.head_dim / kWide * kWide; i < size; i += kWide) {
          w_store(to + i, w_zero());
        }
        widen_row(value + (s0 + s) * row_bytes, part.cache.type, shape.head_dim, to);
      }
      for (int n = 0; n < count;) {
        // heads of one row see the same slots and go together
        const int row = first_row + (turn + n) / group, within = (turn + n) % group, head = kv_head * group + within;
        const int64_t seen = part.past + row + 1 - first_slot - s0;
        const int reach = static_cast<int>(seen < num ? seen : num);
        float* sums = partials + (static_cast<int64_t>(part.first_row + row) * shape.num_heads + head) * head_stride +
                      chunk * partial_size + kPartialHead;
        const int left = group - within;
        const int heads = left >= 4 ? 4 : left;
        if (reach > 0) {
          switch (heads) {
            case 4:
              mix_group<4>(scores[n] + s0, kChunk, wide, reach, size, sums, head_stride);
              break;
            case 3:
              mix_group<3>(scores[n] + s0, kChunk, wide, reach, size, sums, head_stride);
              break;
            case 2:
              mix_group<2>(scores[n] + s0, kChunk, wide, reach, size, sums, head_stride);
              break;
            default:
              mix_group<1>(scores[n] + s0, kChunk, wide, reach, size, sums, head_stride);
          }
        }
        n += heads;
      }
    }
  }
}

HB_INLINE float exp_of(float x) {
  alignas(64) float lane[kNative];
  n_store(lane, n_exp(n_splat(x)));
  return lane[0];
}

void merge_partials(const Shape& shape, const float* partials, int num_chunks, int max_chunks, float* heads) {
  const int size = static_cast<int>(shape.head_padded()), head_dim = shape.head_dim;
  const int64_t partial_size = kPartialHead + size, head_stride = max_chunks * partial_size;
  for (int head = 0; head < shape.num_heads; ++head) {
    const float* first = partials + head * head_stride;
    float most = first[0];
    for (int c = 1; c < num_chunks; ++c) {
      most = first[c * partial_size] > most ? first[c * partial_size] : most;
    }
    alignas(64) float mixed[kMostHeadDim];
    float sum = 0.0f;
    for (int i = 0; i < size; i += kWide) {
      w_store(mixed + i, w_zero());
    }
    for (int c = 0; c < num_chunks; ++c) {
      const float* partial = first + c * partial_size;
      const float share = exp_of(partial[0] - most);
      sum += partial[1] * share;
      for (int i = 0; i < size; i += kWide) {
        w_store(mixed + i, w_fma(w_splat(share), w_load(partial + kPartialHead + i), w_load(mixed + i)));
      }
    }
    float* out = heads + static_cast<int64_t>(head) * head_dim;
    for (int i = 0; i < head_dim; ++i) {
      out[i] = mixed[i] / sum;
    }
  }
}

void mix_few(const float* q, const float* keys, const float* values, int64_t stride, int num, int num_heads, int width,
             float* out) {
  for (int head = 0; head < num_heads; ++head) {
    const int64_t at = static_cast<int64_t>(head) * width;
    float weights[kGroup];
    float most = -__builtin_inff(), sum = 0.0f;
    for (int s = 0; s < num; ++s) {
      float score = 0.0f;
      for (int i = 0; i < width; ++i) {
        score += q[at + i] * keys[s * stride + at + i];
      }
      weights[s] = score;
      most = score > most ? score : most;
    }
    for (int s = 0; s < num; ++s) {
      weights[s] = exp_of(weights[s] - most);
      sum += weights[s];
    }
    for (int i = 0; i < width; ++i) {
      float mixed = 0.0f;
      for (int s = 0; s < num; ++s) {
        mixed += weights[s] * values[s * stride + at + i];
      }
      out[at + i] = mixed / sum;
    }
  }
}

}  // namespace
