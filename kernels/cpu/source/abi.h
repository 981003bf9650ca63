// The library's C interface. kernels/cpu/library.py declares the same structures; change kAbi when they change.
#pragma once

#include <cstdint>

#define HB_PUBLIC __attribute__((visibility("default")))

extern "C" {

constexpr int32_t kAbi = 7;

struct hb_shape {
  int32_t hidden, intermediate, num_layers, num_heads, num_kv_heads, head_dim, vocab;
  int32_t cache_type, embedding_type;
  float eps;
  const float* frequencies;  // [head_dim / 2]
};

struct hb_dense {
  const void* values;
  const void* scales;
  const void* bias;
  int32_t type, scale_type, bias_type, reserved;
  int64_t outputs, inputs, row_stride;
};

struct hb_vector {
  const void* values;
  int32_t type, size;
};

struct hb_layer {
  hb_dense qkv, out, gate_up, down;
  hb_vector input_norm, mlp_norm, q_norm, k_norm;
};

struct hb_part {
  void* keys;
  void* values;
  int64_t capacity, past;
  int32_t first_row, num_rows, cache_type, reserved;
};

// stops a chain of which the model is no longer sure
struct hb_stop {
  double least;  // the probability with which it goes on
  int32_t is_product, reserved;
};

struct hb_forward {
  const int64_t* ids;
  const float* embeddings;
  const int64_t* positions;
  const hb_part* parts;
  const int32_t* feature_layers;
  float* features;
  float* hidden;
  const int32_t* head_rows;
  float* logits;
  int64_t* tokens;
  const int32_t* chains;
  const hb_stop* stops;  // of each part's chain; null for none
  int32_t num_rows, num_parts, num_features, num_head_rows, threads, reserved;
};

struct hb_counts {
  int64_t calls, alone, together;
  int32_t last_size, reserved;
};

struct hb_grafts {
  const void* micro;  // a model without embedding and head; kept alive by the caller
  hb_dense query, keyed, out;
  hb_dense stop[3];
  const float* position_share;  // [max_steps, 2 * hidden]
  const int32_t* feature_layers;
  int32_t num_features, max_steps, merge_heads, residual_is_last;
};

// the macro-step of one sequence
struct hb_macro {
  const hb_part* part;
  const int64_t* merged;
  const float* features;  // of the macro-step behind a prompt
  const double* thresholds;
  int64_t* tokens;
  double* probabilities;
  int64_t position, first_token;
  int32_t num_merged;
  int32_t num_tokens, num_asked, status;  // results
};

enum hb_status : int32_t {
  HB_OK = 0,
  HB_NOT_FINITE = 1,
  HB_NO_MEMORY = 2,
  HB_BAD_ARGUMENT = 3,
  HB_STOP_NOT_FINITE = 4,
};

HB_PUBLIC int32_t hb_abi(void);
// the compiler and its version
HB_PUBLIC const char* hb_compiler(void);
// the name of the best instruction set here, or of the one asked for; null if the machine or the build lacks it
HB_PUBLIC const char* hb_instruction_set(const char* name);
HB_PUBLIC int32_t hb_limits(int32_t* max_rows, int32_t* max_head_dim);

HB_PUBLIC void* hb_model_new(const hb_shape* shape);
HB_PUBLIC int32_t hb_model_layer(void* model, const hb_layer* layer);  // in order
HB_PUBLIC int32_t hb_model_head(void* model, const hb_dense* head, const hb_vector* norm, const void* embedding);
HB_PUBLIC int64_t hb_model_bytes(const void* model);
HB_PUBLIC void hb_model_free(void* model);

HB_PUBLIC int32_t hb_run(const void* model, const char* instruction_set, const hb_forward* call);

HB_PUBLIC void* hb_grafts_new(const hb_grafts* description);
HB_PUBLIC void hb_grafts_free(void* grafts);
// the macro-steps of several sequences; slot_base is null behind prompts. The status of each is its own
HB_PUBLIC int32_t hb_macro_steps(const void* grafts, const char* instruction_set, const void* base, const void* slot_base,
                                 hb_macro* calls, int32_t num_calls, int32_t threads);

HB_PUBLIC void hb_pool_counts(hb_counts* counts);
// whether a call may go on alone where waiting is dear: tests of several threads forbid it
HB_PUBLIC void hb_pool_may_go_alone(int32_t allowed);
// the next call runs on several threads again, whatever waiting has cost before
HB_PUBLIC void hb_pool_forget_waits();
}
