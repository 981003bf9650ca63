#include "forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace hb {
namespace {

constexpr size_t kFetched = 4096;  // bytes of the next weight that are fetched before a barrier
constexpr int64_t kTaskSlots = 8;  // slots whose attention costs as much as beginning a task

}  // namespace

Buffer::~Buffer() { ::operator delete(values_, std::align_val_t(64)); }

float* Buffer::ensure(size_t count) {
  if (count > count_) {
    ::operator delete(values_, std::align_val_t(64));
    values_ = nullptr;
    count_ = 0;
    values_ = static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t(64)));
    std::memset(values_, 0, count * sizeof(float));
    count_ = count;
  }
  return values_;
}

void Workspace::prepare(const Shape& shape, int num_rows, int64_t slots, int threads, int64_t inputs) {
  const int64_t rows = num_rows, head = shape.head_padded();
  const int64_t widest = shape.heads_width() > shape.hidden ? shape.heads_width() : shape.hidden;
  max_chunks = static_cast<int>((slots + kChunk - 1) / kChunk);
  stream.ensure(rows * Runner::stride(shape.hidden));
  qkv.ensure(rows * (shape.num_heads + 2 * shape.num_kv_heads) * head);
  partials.ensure(rows * shape.num_heads * max_chunks * (kPartialHead + head));
  act.ensure(rows * Runner::stride(shape.intermediate));
  own_size = rows * Runner::stride(widest);
  own.ensure(threads * own_size);
  for (const int64_t size : {widest, static_cast<int64_t>(shape.intermediate)}) {
    inputs = size > inputs ? size : inputs;
  }
  codes_size = rows * code_bytes(inputs) / static_cast<int64_t>(sizeof(float));
  codes.ensure(threads * codes_size);
  turns_size = rows * shape.head_dim;
  turns.ensure(threads * turns_size);
  best.resize(static_cast<size_t>(threads) * kMaxRows);
}

void Workspace::prepare_logits(const Shape& shape, int num_rows) {
  logits.ensure(static_cast<size_t>(num_rows) * shape.vocab);
  weighed.resize(static_cast<size_t>(num_rows) * num_logit_chunks(shape.vocab));
}

void Runner::embed_row(const Model& model, int64_t id, float* to) const {
  HB_ASSERT(id >= 0 && id < model.shape.vocab);
  const int64_t hidden = model.shape.hidden;
  const size_t row_bytes = hidden * (model.embedding_type == Type::f32 ? 4 : 2);
  kernels_.widen(static_cast<const char*>(model.embedding) + id * row_bytes, model.embedding_type, hidden, to);
  std::memset(to + hidden, 0, (model.shape.hidden_padded() - hidden) * sizeof(float));
}

void Runner::embed(const Model& model, int num_rows, const int64_t* ids, const float* rows) {
  const int64_t hidden = model.shape.hidden, width = model.shape.hidden_padded();
  for (int t = begin_of(num_rows); t < end_of(num_rows); ++t) {
    float* to = stream(model, t);
    if (ids != nullptr) {
      embed_row(model, ids[t], to);
    } else {
      std::memcpy(to, rows + t * hidden, hidden * sizeof(float));
      std::memset(to + hidden, 0, (width - hidden) * sizeof(float));
    }
  }
  barrier();
}

void Runner::layers(const Model& model, const Part* parts, int num_parts, int num_rows, const int64_t* positions,
                    const Features& features) {
  const Shape& shape = model.shape;
  const int64_t hidden_stride = stride(shape.hidden), act_stride = stride(shape.intermediate);
  turn_tables(model, num_rows, positions);
  for (int index = 0; index < shape.num_layers; ++index) {
    const Layer& layer = model.layers[index];
    norm_rows(model, layer.input_norm, num_rows);
    project_heads(model, index, parts, num_parts, num_rows);
    barrier();
    attend(model, index, parts, num_parts);
    fetch(layer.out, begin_of(layer.out.num_blocks()));
    barrier();
    mix(model, parts, num_parts);
    kernels_.project_add(layer.out, normed(), stride(shape.heads_width()), num_rows, begin_of(layer.out.num_blocks()),
                         end_of(layer.out.num_blocks()), codes(), workspace_.stream.get(), hidden_stride);
    const int pairs = layer.gate_up.num_blocks() / 2;
    fetch(layer.gate_up, 2 * begin_of(pairs));
    barrier();
    norm_rows(model, layer.mlp_norm, num_rows);
    kernels_.project_gated(layer.gate_up, normed(), hidden_stride, num_rows, begin_of(pairs), end_of(pairs), codes(),
                           workspace_.act.get(), act_stride);
    fetch(layer.down, begin_of(layer.down.num_blocks()));
    barrier();
    kernels_.project_add(layer.down, workspace_.act.get(), act_stride, num_rows, begin_of(layer.down.num_blocks()),
                         end_of(layer.down.num_blocks()), codes(), workspace_.stream.get(), hidden_stride);
    const bool last = index + 1 == shape.num_layers;
    const Matrix& next = last ? model.head : model.layers[index + 1].qkv;
    fetch(next, begin_of(next.num_blocks()));
    barrier();
    copy_features(model, index, num_rows, features);
  }
}

void Runner::turn_tables(const Model& model, int num_rows, const int64_t* positions) {
  const int half = model.shape.head_dim / 2;
  float* cosines = workspace_.turns.get() + thread_ * workspace_.turns_size;
  float* sines = cosines + static_cast<int64_t>(num_rows) * half;
  for (int t = 0; t < num_rows; ++t) {
    for (int i = 0; i < half; ++i) {
      // the angle in float32, as transformers has it; its cosine as exact as float32 can be
      const double angle = static_cast<float>(positions[t]) * model.frequencies[i];
      cosines[t * half + i] = static_cast<float>(std::cos(angle));
      sines[t * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void Runner::project_heads(const Model& model, int layer, const Part* parts, int num_parts, int num_rows) {
  const Shape& shape = model.shape;
  const Layer& weights = model.layers[layer];
  const int size = static_cast<int>(shape.head_padded()), head_blocks = size / kBlock, half = shape.head_dim / 2;
  const int turned = shape.num_heads + shape.num_kv_heads;
  const int64_t row_stride = static_cast<int64_t>(turned + shape.num_kv_heads) * size;
  float* qkv = workspace_.qkv.get();
  const float* cosines = workspace_.turns.get() + thread_ * workspace_.turns_size;
  const float* sines = cosines + static_cast<int64_t>(num_rows) * half;
  const float score_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));

  // queries and keys: whole heads, because a head is normed and turned as a whole
  const int first = begin_of(turned), last = end_of(turned);
  kernels_.project(weights.qkv, normed(), stride(shape.hidden), num_rows, first * head_blocks, last * head_blocks, codes(),
                   qkv, row_stride);
  for (int p = 0; p < num_parts; ++p) {
    const Part& part = parts[p];
    for (int r = 0; r < part.num_rows; ++r) {
      const int row = part.first_row + r;
      for (int head = first; head < last; ++head) {
        float* values = qkv + row * row_stride + static_cast<int64_t>(head) * size;
        const bool is_key = head >= shape.num_heads;
        const float* norm = is_key ? weights.k_norm : weights.q_norm;
        if (norm != nullptr) {
          kernels_.rms_norm(values, norm, shape.head_dim, shape.eps, values);
        }
        kernels_.rotate(values, cosines + static_cast<int64_t>(row) * half, sines + static_cast<int64_t>(row) * half, half);
        if (is_key) {
          kernels_.narrow(values, part.cache.type, shape.head_dim,
                          part.cache.key(layer, head - shape.num_heads, part.past + r));
        } else {
          kernels_.scale(values, score_scale, size);
        }
      }
    }
  }

  // values: by blocks, which share out evenly; of a cache with a scale per head by whole heads
  bool by_heads = false;
  for (int p = 0; p < num_parts; ++p) {
    by_heads = by_heads || parts[p].cache.type == Type::i8;
  }
  const int unit = by_heads ? head_blocks : 1, units = shape.num_kv_heads * head_blocks / unit;
  const int first_value = begin_of(units) * unit, last_value = end_of(units) * unit;
  const int before = turned * head_blocks;
  kernels_.project(weights.qkv, normed(), stride(shape.hidden), num_rows, before + first_value, before + last_value, codes(),
                   qkv, row_stride);
  for (int p = 0; p < num_parts; ++p) {
    const Part& part = parts[p];
    for (int r = 0; r < part.num_rows; ++r) {
      if (part.cache.type == Type::i8) {
        for (int head = first_value / head_blocks; head < last_value / head_blocks; ++head) {
          const float* values = qkv + (part.first_row + r) * row_stride + static_cast<int64_t>(turned + head) * size;
          kernels_.narrow(values, part.cache.type, shape.head_dim, part.cache.value(layer, head, part.past + r));
        }
        continue;
      }
      for (int block = first_value; block < last_value; ++block) {
        const int head = block / head_blocks, offset = block % head_blocks * kBlock;
        const int count = shape.head_dim - offset < kBlock ? shape.head_dim - offset : kBlock;
        const float* values = qkv + (part.first_row + r) * row_stride + static_cast<int64_t>(before + block) * kBlock;
        char* to = part.cache.value(layer, head, part.past + r) + offset * part.cache.element_bytes();
        kernels_.narrow(values, part.cache.type, count, to);
      }
    }
  }
}

void Runner::attend(const Model& model, int layer, const Part* parts, int num_parts) {
  const Shape& shape = model.shape;
  const int64_t row_stride = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_padded();
  // each thread takes a run of tasks of about as many slots as the others': chunks of one head lie one after another
  int64_t total = 0;
  for (int p = 0; p < num_parts; ++p) {
    total += shape.num_kv_heads * (parts[p].past + parts[p].num_rows + kTaskSlots * parts[p].num_chunks());
  }
  int64_t before = 0;
  for (int p = 0; p < num_parts; ++p) {
    const Part& part = parts[p];
    const int64_t slots = part.past + part.num_rows;
    const int num_chunks = part.num_chunks();
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      for (int chunk = 0; chunk < num_chunks; ++chunk) {
        const int64_t left = slots - static_cast<int64_t>(chunk) * kChunk;
        const int64_t cost = kTaskSlots + (left < kChunk ? left : kChunk);
        const int64_t owner = (2 * before + cost) * team_.size / (2 * total);
        before += cost;
        if (owner == thread_) {
          kernels_.attend(part, shape, layer, head, chunk, workspace_.qkv.get(), row_stride, workspace_.partials.get(),
                          workspace_.max_chunks);
        }
      }
    }
  }
}

// every thread merges all heads for itself: that is less than waiting for the others once more
void Runner::mix(const Model& model, const Part* parts, int num_parts) {
  const Shape& shape = model.shape;
  const int64_t width = shape.heads_width(), out_stride = stride(width);
  const int64_t row_size = shape.num_heads * workspace_.max_chunks * (kPartialHead + shape.head_padded());
  for (int p = 0; p < num_parts; ++p) {
    for (int r = 0; r < parts[p].num_rows; ++r) {
      const int row = parts[p].first_row + r;
      const int num_chunks = static_cast<int>((parts[p].past + r) / kChunk + 1);
      float* to = normed() + row * out_stride;
      kernels_.merge_partials(shape, workspace_.partials.get() + row * row_size, num_chunks, workspace_.max_chunks, to);
      std::memset(to + width, 0, (padded(width) - width) * sizeof(float));
    }
  }
}

void Runner::norm_rows(const Model& model, const float* weight, int num_rows) {
  for (int t = 0; t < num_rows; ++t) {
    kernels_.rms_norm(stream(model, t), weight, model.shape.hidden, model.shape.eps,
                      normed() + t * stride(model.shape.hidden));
  }
}

void Runner::norm_row(const Model& model, int row, float* out) {
  kernels_.rms_norm(stream(model, row), model.final_norm, model.shape.hidden, model.shape.eps, out);
}

void Runner::copy_features(const Model& model, int layer, int num_rows, const Features& features) {
  const int64_t hidden = model.shape.hidden;
  for (int f = 0; f < features.count; ++f) {
    if (features.layers[f] != layer) {
      continue;
    }
    for (int t = begin_of(num_rows); t < end_of(num_rows); ++t) {
      float* to = features.values + (static_cast<int64_t>(f) * num_rows + t) * hidden;
      const float* from = stream(model, t);
      if (layer + 1 == model.shape.num_layers && model.final_norm != nullptr) {
        float* row = normed();
        norm_row(model, t, row);
        from = row;
      }
      std::memcpy(to, from, hidden * sizeof(float));
    }
  }
}

void Runner::fetch(const Matrix& matrix, int block) const {
  if (matrix.blocks == nullptr || block >= matrix.num_blocks()) {
    return;
  }
  const char* from = matrix.block(block);
  for (size_t i = 0; i < kFetched; i += 64) {
    __builtin_prefetch(from + i);
  }
}

namespace {

struct Job {
  const Model& model;
  const Kernels& kernels;
  const ForwardCall& call;
  Workspace& workspace;
  bool finite = true;
};

// takes in how sure the model is of a chain's newest token; whether that is enough to go on
bool goes_on(const Stop& stop, double highest, double& likely) {
  likely = stop.is_product ? likely * highest : highest;
  return likely >= stop.least;
}

// Decodes on: each part feeds its newest token to the next forward until it has as many as it wants or is no longer sure.
// Parts that are done drop out. Every thread knows the newest tokens, how sure the model is of them (null where no part
// asks), and the places of their slots. False if a row had no finite logit.
bool decode_chains(const ForwardCall& call, const Model& model, Runner& runner, const int64_t* tokens, const bool* good,
                   const double* sure) {
  Part parts[kMaxRows];
  int64_t newest[kMaxRows], positions[kMaxRows], to[kMaxRows];
  int left[kMaxRows];
  bool finite[kMaxRows], all_finite = true;
  double highest[kMaxRows], likely[kMaxRows];
  Stop stops[kMaxRows];
  int num = 0;
  int64_t place = call.num_head_rows;
  for (size_t p = 0; p < call.parts.size(); ++p) {
    const Part& part = call.parts[p];
    const int last = part.first_row + part.num_rows - 1;
    int row = call.num_head_rows - 1;
    while (row >= 0 && call.head_rows[row] != last) {
      --row;
    }
    HB_ASSERT(call.chains[p] == 0 || row >= 0);
    if (runner.thread() == 0) {
      std::fill_n(call.tokens + place, call.chains[p], kNotDecoded);
    }
    likely[num] = 1.0;
    if (call.chains[p] > 0 && (sure == nullptr || (good[row] && goes_on(call.stops[p], sure[row], likely[num])))) {
      parts[num] = part;
      parts[num].past += part.num_rows;
      parts[num].num_rows = 1;
      positions[num] = call.positions[last];
      newest[num] = tokens[row];
      finite[num] = good[row];
      to[num] = place;
      left[num] = call.chains[p];
      stops[num] = sure == nullptr ? Stop{} : call.stops[p];
      ++num;
    }
    place += call.chains[p];
  }
  const int64_t row_stride = Runner::stride(model.shape.hidden);
  while (num > 0) {
    for (int a = 0; a < num; ++a) {
      ++positions[a];
      parts[a].first_row = a;
    }
    runner.embed(model, num, newest, nullptr);
    runner.layers(model, parts, num, num, positions, Features{});
    for (int a = 0; a < num; ++a) {
      runner.norm_row(model, a, runner.normed() + a * row_stride);
    }
    runner.best_tokens(model, num, newest, finite, sure == nullptr ? nullptr : highest);
    int kept = 0;
    for (int a = 0; a < num; ++a) {
      all_finite = all_finite && finite[a];
      if (runner.thread() == 0) {
        call.tokens[to[a]] = finite[a] ? newest[a] : -1;
      }
      if (left[a] > 1 && (sure == nullptr || (finite[a] && goes_on(stops[a], highest[a], likely[a])))) {
        parts[kept] = parts[a];
        ++parts[kept].past;
        positions[kept] = positions[a];
        newest[kept] = newest[a];
        finite[kept] = finite[a];
        to[kept] = to[a] + 1;
        left[kept] = left[a] - 1;
        likely[kept] = likely[a];
        stops[kept] = stops[a];
        ++kept;
      }
    }
    num = kept;
  }
  return all_finite;
}

void work(void* context, Team& team, int thread) {
  auto& job = *static_cast<Job*>(context);
  const ForwardCall& call = job.call;
  const Model& model = job.model;
  Runner runner(job.kernels, job.workspace, team, thread);
  const int64_t hidden = model.shape.hidden, row_stride = Runner::stride(hidden);
  bool all_finite = true;

  runner.embed(model, call.num_rows, call.ids, call.embeddings);
  runner.layers(model, call.parts.data(), static_cast<int>(call.parts.size()), call.num_rows, call.positions, call.features);
  if (call.hidden != nullptr) {
    for (int t = runner.begin_of(call.num_rows); t < runner.end_of(call.num_rows); ++t) {
      runner.norm_row(model, t, runner.normed());
      std::memcpy(call.hidden + t * hidden, runner.normed(), hidden * sizeof(float));
    }
  }
  if (call.num_head_rows > 0) {
    int64_t tokens[kMaxRows];
    bool finite[kMaxRows];
    double highest[kMaxRows], *sure = call.stops.empty() ? nullptr : highest;
    for (int r = 0; r < call.num_head_rows; ++r) {
      runner.norm_row(model, call.head_rows[r], runner.normed() + r * row_stride);
      finite[r] = true;
    }
    if (call.logits != nullptr) {
      runner.logits(model, call.num_head_rows, call.logits);
    }
    if (call.tokens != nullptr) {
      runner.best_tokens(model, call.num_head_rows, tokens, finite, sure);
      for (int r = 0; r < call.num_head_rows; ++r) {
        all_finite = all_finite && finite[r];
        if (thread == 0) {
          call.tokens[r] = finite[r] ? tokens[r] : -1;
        }
      }
      if (call.chains != nullptr) {
        all_finite = decode_chains(call, model, runner, tokens, finite, sure) && all_finite;
      }
    }
  }
  if (thread == 0) {
    job.finite = all_finite;
  }
}

}  // namespace

bool forward(const Model& model, const Kernels& kernels, int threads, const ForwardCall& call) {
  thread_local Workspace workspace;
  int64_t slots = 1;
  for (size_t p = 0; p < call.parts.size(); ++p) {
    const Part& part = call.parts[p];
    const int64_t needed = part.past + part.num_rows + (call.chains == nullptr ? 0 : call.chains[p]);
    slots = needed > slots ? needed : slots;
  }
  workspace.prepare(model.shape, call.num_rows, slots, threads);
  if (!call.stops.empty()) {
    workspace.prepare_logits(model.shape, call.num_head_rows);
  }
  Job job{model, kernels, call, workspace};
  run_together(threads, work, &job);
  return job.finite;
}

}  // namespace hb
