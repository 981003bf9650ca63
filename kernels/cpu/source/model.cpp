#include "model.h"

#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hb {
namespace {

constexpr size_t kHugePage = 2u << 20;
constexpr size_t kPiece = 64u << 20;
constexpr size_t kFetchedAhead = 4096;

float value_of(const void* values, Type type, int64_t index) {
  if (type == Type::f32) {
    return static_cast<const float*>(values)[index];
  }
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(values)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// one row of the dense weight becomes one lane of a block; `kTogether` inputs lie side by side
template <typename Element, int kTogether>
void pack_lane(const void* from, int64_t inputs, int lane, char* block) {
  const auto* values = static_cast<const Element*>(from);
  auto* to = reinterpret_cast<Element*>(block) + lane * kTogether;
  const int64_t whole = inputs / kTogether * kTogether;
  for (int64_t k = 0; k < whole; k += kTogether, to += kBlock * kTogether) {
    for (int i = 0; i < kTogether; ++i) {
      to[i] = values[k + i];
    }
  }
  for (int64_t k = whole; k < inputs; ++k) {
    to[k - whole] = values[k];
  }
}

// `source(block, lane)` is the row of the dense weight that this output is, or -1 for padding
template <typename Source>
Matrix pack_rows(Arena& arena, const Dense& dense, int64_t num_blocks, Source source) {
  Matrix matrix;
  matrix.type = dense.type;
  matrix.outputs = static_cast<int32_t>(num_blocks * kBlock);
  matrix.inputs = static_cast<int32_t>(padded(dense.inputs));
  const size_t element = matrix.element_bytes(), block_bytes = matrix.block_bytes();
  auto* blocks = static_cast<char*>(arena.take(block_bytes * num_blocks));
  const auto* values = static_cast<const char*>(dense.values);
  for (int64_t b = 0; b < num_blocks; ++b) {
    char* block = blocks + b * block_bytes;
    for (int lane = 0; lane < kBlock; ++lane) {
      const int64_t row = source(b, lane);
      if (row < 0) {
        continue;
      }
      const char* from = values + row * dense.row_stride * element;
      switch (dense.type) {
        case Type::f32:
          pack_lane<float, 1>(from, dense.inputs, lane, block);
          break;
        case Type::bf16:
          pack_lane<uint16_t, 2>(from, dense.inputs, lane, block);
          break;
        case Type::i8:
          pack_lane<uint8_t, 4>(from, dense.inputs, lane, block);
          break;
      }
    }
  }
  if (dense.type == Type::i8) {
    // turning the highest bit over adds 128, to padding too
    for (size_t i = 0; i < block_bytes * num_blocks; ++i) {
      blocks[i] = static_cast<char>(blocks[i] ^ 0x80);
    }
  }
  matrix.blocks = blocks;
  auto vector = [&](const void* from, Type type) -> const float* {
    if (from == nullptr) {
      return nullptr;
    }
    auto* to = static_cast<float*>(arena.take(sizeof(float) * matrix.outputs));
    for (int64_t b = 0; b < num_blocks; ++b) {
      for (int lane = 0; lane < kBlock; ++lane) {
        const int64_t row = source(b, lane);
        to[b * kBlock + lane] = row < 0 ? 0.0f : value_of(from, type, row);
      }
    }
    return to;
  };
  matrix.scales = vector(dense.scales, dense.scale_type);
  matrix.bias = vector(dense.bias, dense.bias_type);
  return matrix;
}

}  // namespace

Arena::~Arena() {
  for (const Piece& piece : pieces_) {
#ifdef __linux__
    munmap(piece.address, piece.size);
#else
    ::operator delete(piece.address, std::align_val_t(kHugePage));
#endif
  }
}

void* Arena::take(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes + kFetchedAhead > left_) {
    size_t size = bytes + kFetchedAhead > kPiece ? bytes + kFetchedAhead : kPiece;
    size = (size + kHugePage - 1) / kHugePage * kHugePage;
#ifdef __linux__
    // aligned to a large page by asking for one more and giving back what lies before and behind
    void* raw = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
      throw std::bad_alloc();
    }
    auto address = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = (address + kHugePage - 1) / kHugePage * kHugePage;
    if (aligned > address) {
      munmap(raw, aligned - address);
    }
    if (address + kHugePage > aligned) {
      munmap(reinterpret_cast<void*>(aligned + size), address + kHugePage - aligned);
    }
    auto* piece = reinterpret_cast<char*>(aligned);
#ifdef MADV_HUGEPAGE
    madvise(piece, size, MADV_HUGEPAGE);
#endif
#else
    auto* piece = static_cast<char*>(::operator new(size, std::align_val_t(kHugePage)));
    std::memset(piece, 0, size);
#endif
    pieces_.push_back({piece, size});
    next_ = piece;
    left_ = size;
  }
  void* taken = next_;
  next_ += bytes;
  left_ -= bytes;
  taken_ += bytes;
  return taken;
}

Matrix pack(Arena& arena, const Dense& dense, const std::vector<Segment>& segments) {
  std::vector<int64_t> rows;
  for (const Segment& segment : segments) {
    for (int64_t i = 0; i < padded(segment.count); ++i) {
      rows.push_back(i < segment.count ? segment.first + i : -1);
    }
  }
  return pack_rows(arena, dense, static_cast<int64_t>(rows.size()) / kBlock,
                   [&](int64_t block, int lane) { return rows[block * kBlock + lane]; });
}

Matrix pack(Arena& arena, const Dense& dense) { return pack(arena, dense, {{0, dense.outputs}}); }

Matrix pack_gated(Arena& arena, const Dense& dense) {
  const int64_t half = dense.outputs / 2;
  return pack_rows(arena, dense, 2 * padded(half) / kBlock, [&](int64_t block, int lane) {
    const int64_t output = block / 2 * kBlock + lane;
    return output >= half ? -1 : block % 2 * half + output;
  });
}

const float* pack_vector(Arena& arena, const void* values, Type type, int64_t size) {
  auto* to = static_cast<float*>(arena.take(sizeof(float) * padded(size)));
  for (int64_t i = 0; i < size; ++i) {
    to[i] = value_of(values, type, i);
  }
  return to;
}

}  // namespace hb
