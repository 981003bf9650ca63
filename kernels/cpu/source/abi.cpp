#include "abi.h"

#include <cstring>
#include <memory>
#include <new>

#include "forward.h"
#include "kernels.h"
#include "macro_step.h"
#include "model.h"
#include "pool.h"

namespace {

hb::Dense dense_of(const hb_dense& d) {
  return {static_cast<hb::Type>(d.type), d.values,  d.scales, static_cast<hb::Type>(d.scale_type), d.bias,
          static_cast<hb::Type>(d.bias_type), d.outputs, d.inputs, d.row_stride};
}

hb::Part part_of(const hb::Model& model, const hb_part& p) {
  hb::Part part;
  part.cache = {p.keys, p.values, static_cast<hb::Type>(p.cache_type), p.capacity, model.shape.num_kv_heads, model.shape.head_dim};
  part.past = p.past;
  part.first_row = p.first_row;
  part.num_rows = p.num_rows;
  return part;
}

const float* vector_of(hb::Model& model, const hb_vector& v) {
  return v.values == nullptr ? nullptr : hb::pack_vector(model.arena, v.values, static_cast<hb::Type>(v.type), v.size);
}

}  // namespace

int32_t hb_abi(void) { return kAbi; }

const char* hb_compiler(void) {
#ifdef __clang__
  return "clang++ " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

const char* hb_instruction_set(const char* name) {
  const hb::Kernels* kernels = hb::find_kernels(name);
  return kernels == nullptr ? nullptr : kernels->name;
}

int32_t hb_limits(int32_t* max_rows, int32_t* max_head_dim) {
  *max_rows = hb::kMaxRows;
  *max_head_dim = hb::kMostHeadDim;
  return HB_OK;
}

void* hb_model_new(const hb_shape* s) {
  try {
    auto* model = new hb::Model;
    model->shape = {s->hidden,   s->intermediate, s->num_layers, s->num_heads, s->num_kv_heads,
                    s->head_dim, s->vocab,        s->eps};
    model->cache_type = static_cast<hb::Type>(s->cache_type);
    model->embedding_type = static_cast<hb::Type>(s->embedding_type);
    model->frequencies.assign(s->frequencies, s->frequencies + s->head_dim / 2);
    model->layers.reserve(s->num_layers);
    return model;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

int32_t hb_model_layer(void* handle, const hb_layer* l) {
  auto& model = *static_cast<hb::Model*>(handle);
  const hb::Shape& shape = model.shape;
  try {
    hb::Layer layer;
    layer.input_norm = vector_of(model, l->input_norm);
    std::vector<hb::Segment> heads;
    for (int64_t head = 0; head < shape.num_heads + 2 * shape.num_kv_heads; ++head) {
      heads.push_back({head * shape.head_dim, shape.head_dim});
    }
    layer.qkv = hb::pack(model.arena, dense_of(l->qkv), heads);
    layer.q_norm = vector_of(model, l->q_norm);
    layer.k_norm = vector_of(model, l->k_norm);
    layer.out = hb::pack(model.arena, dense_of(l->out));
    layer.mlp_norm = vector_of(model, l->mlp_norm);
    layer.gate_up = hb::pack_gated(model.arena, dense_of(l->gate_up));
    layer.down = hb::pack(model.arena, dense_of(l->down));
    model.layers.push_back(layer);
    return HB_OK;
  } catch (const std::bad_alloc&) {
    return HB_NO_MEMORY;
  }
}

int32_t hb_model_head(void* handle, const hb_dense* head, const hb_vector* norm, const void* embedding) {
  auto& model = *static_cast<hb::Model*>(handle);
  try {
    model.final_norm = vector_of(model, *norm);
    if (head->values != nullptr) {
      model.head = hb::pack(model.arena, dense_of(*head));
    }
    model.embedding = embedding;
    return HB_OK;
  } catch (const std::bad_alloc&) {
    return HB_NO_MEMORY;
  }
}

int64_t hb_model_bytes(const void* handle) {
  return static_cast<int64_t>(static_cast<const hb::Model*>(handle)->arena.bytes());
}

void hb_model_free(void* handle) { delete static_cast<hb::Model*>(handle); }

int32_t hb_run(const void* handle, const char* instruction_set, const hb_forward* c) {
  const auto& model = *static_cast<const hb::Model*>(handle);
  const hb::Kernels* kernels = hb::find_kernels(instruction_set);
  if (kernels == nullptr || c->num_rows < 1 || c->num_rows > hb::kMaxRows || c->threads < 1) {
    return HB_BAD_ARGUMENT;
  }
  try {
    hb::ForwardCall call;
    call.num_rows = c->num_rows;
    call.ids = c->ids;
    call.embeddings = c->embeddings;
    call.positions = c->positions;
    for (int32_t i = 0; i < c->num_parts; ++i) {
      call.parts.push_back(part_of(model, c->parts[i]));
    }
    call.features = {c->feature_layers, c->num_features, c->features};
    call.hidden = c->hidden;
    call.num_head_rows = c->num_head_rows;
    call.head_rows = c->head_rows;
    call.logits = c->logits;
    call.tokens = c->tokens;
    call.chains = c->chains;
    for (int32_t i = 0; c->stops != nullptr && i < c->num_parts; ++i) {
      call.stops.push_back({c->stops[i].least, c->stops[i].is_product != 0});
    }
    return hb::forward(model, *kernels, c->threads, call) ? HB_OK : HB_NOT_FINITE;
  } catch (const std::bad_alloc&) {
    return HB_NO_MEMORY;
  }
}

void* hb_grafts_new(const hb_grafts* d) {
  try {
    auto grafts = std::make_unique<hb::Grafts>();
    const auto& micro = *static_cast<const hb::Model*>(d->micro);
    grafts->micro = &micro;
    grafts->query = hb::pack(grafts->arena, dense_of(d->query));
    grafts->keyed = hb::pack(grafts->arena, dense_of(d->keyed));
    grafts->out = hb::pack(grafts->arena, dense_of(d->out));
    for (int i = 0; i < 3; ++i) {
      grafts->stop[i] = hb::pack(grafts->arena, dense_of(d->stop[i]));
    }
    grafts->stop_width = static_cast<int32_t>(d->stop[0].outputs);
    grafts->merge_heads = d->merge_heads;
    grafts->residual_is_last = d->residual_is_last != 0;
    grafts->max_steps = d->max_steps;
    grafts->feature_layers.assign(d->feature_layers, d->feature_layers + d->num_features);
    const int64_t pair = 2 * static_cast<int64_t>(micro.shape.hidden), stride = hb::padded(pair);
    auto* share = static_cast<float*>(grafts->arena.take(sizeof(float) * d->max_steps * stride));
    for (int32_t t = 0; t < d->max_steps; ++t) {
      std::memcpy(share + t * stride, d->position_share + t * pair, sizeof(float) * pair);
    }
    grafts->position_share = share;
    return grafts.release();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void hb_grafts_free(void* handle) { delete static_cast<hb::Grafts*>(handle); }

int32_t hb_macro_steps(const void* handle, const char* instruction_set, const void* base, const void* slot_base,
                       hb_macro* calls, int32_t num_calls, int32_t threads) {
  const hb::Kernels* kernels = hb::find_kernels(instruction_set);
  const auto& grafts = *static_cast<const hb::Grafts*>(handle);
  if (kernels == nullptr || threads < 1 || num_calls < 1 || num_calls > hb::most_sequences(grafts)) {
    return HB_BAD_ARGUMENT;
  }
  try {
    hb::MacroCall call;
    call.base = static_cast<const hb::Model*>(base);
    call.slot_base = static_cast<const hb::Model*>(slot_base);
    call.sequences.resize(num_calls);
    for (int32_t i = 0; i < num_calls; ++i) {
      const hb_macro& c = calls[i];
      hb::MacroSequence& sequence = call.sequences[i];
      if (call.slot_base != nullptr) {
        sequence.part = part_of(*call.slot_base, *c.part);
        sequence.part.first_row = i;
      }
      sequence.position = c.position;
      sequence.merged = c.merged;
      sequence.num_merged = c.num_merged;
      sequence.features = c.features;
      sequence.first_token = c.first_token;
      sequence.thresholds = c.thresholds;
      sequence.tokens = c.tokens;
      sequence.probabilities = c.probabilities;
    }
    hb::macro_steps(grafts, *kernels, threads, call);
    for (int32_t i = 0; i < num_calls; ++i) {
      const hb::MacroSequence& sequence = call.sequences[i];
      calls[i].num_tokens = sequence.num_tokens;
      calls[i].num_asked = sequence.num_asked;
      calls[i].status = !sequence.finite ? HB_NOT_FINITE : !sequence.stop_finite ? HB_STOP_NOT_FINITE : HB_OK;
    }
    return HB_OK;
  } catch (const std::bad_alloc&) {
    return HB_NO_MEMORY;
  }
}

void hb_pool_counts(hb_counts* counts) {
  const hb::PoolCounts now = hb::pool_counts();
  *counts = {now.calls, now.alone, now.together, now.last_size, 0};
}

void hb_pool_may_go_alone(int32_t allowed) { hb::pool_may_go_alone(allowed != 0); }

void hb_pool_forget_waits() { hb::pool_forget_waits(); }
