// A model's weights, packed in the order in which a forward reads them.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "types.h"

namespace hb {

// Zeroed memory for weights in large pages, handed out from the front and freed as a whole.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();
  // 64-byte aligned; memory that a kernel fetches ahead of its end is there as well
  void* take(size_t bytes);
  size_t bytes() const { return taken_; }

 private:
  struct Piece {
    void* address;
    size_t size;
  };
  std::vector<Piece> pieces_;
  char* next_ = nullptr;
  size_t left_ = 0;
  size_t taken_ = 0;
};

// A dense row-major weight [outputs, inputs] as the Python side has it.
struct Dense {
  Type type = Type::f32;
  const void* values = nullptr;
  const void* scales = nullptr;  // [outputs] in scale_type, of int8
  Type scale_type = Type::f32;
  const void* bias = nullptr;  // [outputs] in bias_type, or nothing
  Type bias_type = Type::f32;
  int64_t outputs = 0;
  int64_t inputs = 0;
  int64_t row_stride = 0;  // elements from one row to the next
};

// Outputs that are packed in blocks of their own: `first`, then as many as `count`, padded to whole blocks.
struct Segment {
  int64_t first;
  int64_t count;
};

Matrix pack(Arena& arena, const Dense& dense, const std::vector<Segment>& segments);
Matrix pack(Arena& arena, const Dense& dense);
// a block of the first half of the outputs, then the same block of the second half, and so on
Matrix pack_gated(Arena& arena, const Dense& dense);
const float* pack_vector(Arena& arena, const void* values, Type type, int64_t size);

struct Model {
  Shape shape;
  Type cache_type = Type::f32;
  Arena arena;
  std::vector<Layer> layers;
  std::vector<float> frequencies;  // radians per position of each pair of elements of a head, [Dh / 2]
  const float* final_norm = nullptr;
  Matrix head;
  // row-major [V, D], the Python side's own
  const void* embedding = nullptr;
  Type embedding_type = Type::f32;
};

}  // namespace hb
