#include "macro_step.h"

#include <cmath>
#include <cstring>

namespace hb {
namespace {

// what a macro-step needs next to a forward's workspace, kept from call to call
struct Extra {
  Workspace workspace;
  Buffer micro_keys, micro_values;
  Buffer merging;  // query [D], then keys and values [S][2 D]
  Buffer inner;    // two hidden layers of the stop head
};

struct Job {
  const Grafts& grafts;
  const Kernels& kernels;
  const MacroCall& call;
  Extra& extra;
  MacroResult result;
};

// One thread's part; all threads take the same turns, because all know the same tokens and probabilities.
class MacroStep {
 public:
  MacroStep(Job& job, Team& team, int thread)
      : job_(job),
        grafts_(job.grafts),
        call_(job.call),
        kernels_(job.kernels),
        runner_(job.kernels, job.extra.workspace, team, thread),
        hidden_(job.call.base->shape.hidden),
        num_features_(static_cast<int>(job.grafts.feature_layers.size())) {}

  void run() {
    int64_t token = call_.slot_base == nullptr ? call_.first_token : base_token();
    load_row(call_.features + static_cast<int64_t>(num_features_ - 1) * hidden_);
    for (;;) {
      if (runner_.thread() == 0) {
        call_.tokens[result_.num_tokens] = token;
      }
      ++result_.num_tokens;
      if (!result_.finite || result_.num_tokens == grafts_.max_steps || call_.thresholds == nullptr || !goes_on()) {
        break;
      }
      token = micro_token(token);
    }
    if (runner_.thread() == 0) {
      job_.result = result_;
    }
  }

 private:
  // gives the merged tokens their slot; token 1 of the new macro-step
  int64_t base_token() {
    const Model& base = *call_.slot_base;
    if (call_.num_merged == 1) {
      runner_.embed(*call_.base, 1, call_.merged, nullptr);
    } else {
      merge(base);
    }
    const Features features{grafts_.feature_layers.data(), num_features_, call_.features};
    runner_.layers(base, &call_.part, 1, 1, &call_.position, features);
    // features are copied by whoever owns the row: all must see them
    runner_.barrier();
    int64_t token = 0;
    if (grafts_.feature_layers.back() + 1 == base.shape.num_layers) {
      runner_.norm_row(base, 0, runner_.normed());
      runner_.best_tokens(base, 1, &token, &result_.finite);
    } else {
      load_row(call_.features + static_cast<int64_t>(num_features_ - 1) * hidden_);
      runner_.best_tokens(*call_.base, 1, &token, &result_.finite);
    }
    return token;
  }

  // one input vector for several tokens, as row 0 of the stream
  void merge(const Model& base) {
    const int num = call_.num_merged;
    const int64_t stride = Runner::stride(hidden_), pair = padded(2 * hidden_);
    // this thread's own copy of the embeddings, and their mean behind them
    float* rows = runner_.normed();
    float* mean = rows + num * stride;
    // the embedding table is the base's own, whatever the slot goes through
    const Model& table = *call_.base;
    std::memset(mean, 0, padded(hidden_) * sizeof(float));
    for (int t = 0; t < num; ++t) {
      float* row = rows + t * stride;
      runner_.embed_row(table, call_.merged[t], row);
      for (int64_t i = 0; i < hidden_; ++i) {
        mean[i] += row[i];
      }
    }
    kernels_.scale(mean, 1.0f / static_cast<float>(num), hidden_);
    float* query = job_.extra.merging.get();
    float* keyed = query + padded(hidden_);
    const int query_blocks = grafts_.query.num_blocks(), keyed_blocks = grafts_.keyed.num_blocks();
    kernels_.project(grafts_.query, mean, stride, 1, runner_.begin_of(query_blocks), runner_.end_of(query_blocks), query, 0);
    kernels_.project(grafts_.keyed, rows, stride, num, runner_.begin_of(keyed_blocks), runner_.end_of(keyed_blocks), keyed,
                     pair);
    runner_.barrier();
    float* mixed = mean + stride;
    mix(query, keyed, pair, num, mixed);
    float* residual = runner_.stream(base, 0);
    const float* start = grafts_.residual_is_last ? rows + (num - 1) * stride : mean;
    const int blocks = grafts_.out.num_blocks(), first = runner_.begin_of(blocks), last = runner_.end_of(blocks);
    std::memcpy(residual + static_cast<int64_t>(first) * kBlock, start + static_cast<int64_t>(first) * kBlock,
                static_cast<size_t>(last - first) * kBlock * sizeof(float));
    kernels_.project_add(grafts_.out, mixed, stride, 1, first, last, residual, 0);
    runner_.barrier();
  }

  // attention of the mean over the tokens, worked out by every thread for itself; keys and values go behind `mixed`
  void mix(const float* query, const float* keyed, int64_t pair, int num, float* mixed) {
    const int width = static_cast<int>(hidden_ / grafts_.merge_heads);
    float* own = mixed + Runner::stride(hidden_);
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    for (int t = 0; t < num; ++t) {
      for (int64_t i = 0; i < 2 * hidden_; ++i) {
        const float value = keyed[t * pair + i] + grafts_.position_share[t * pair + i];
        own[t * pair + i] = i < hidden_ ? value * scale : value;
      }
    }
    kernels_.mix_few(query, own, own + hidden_, pair, num, grafts_.merge_heads, width, mixed);
    std::memset(mixed + hidden_, 0, (padded(hidden_) - hidden_) * sizeof(float));
  }

  // one more token from the newest one
  int64_t micro_token(int64_t token) {
    const Model& micro = *grafts_.micro;
    const bool first = result_.num_tokens == 1;
    const int num_rows = first ? num_features_ + 1 : 1;
    const int64_t past = first ? 0 : num_features_ + result_.num_tokens - 1;
    if (first) {
      for (int f = runner_.begin_of(num_features_); f < runner_.end_of(num_features_); ++f) {
        float* row = runner_.stream(micro, f);
        std::memcpy(row, call_.features + static_cast<int64_t>(f) * hidden_, hidden_ * sizeof(float));
        std::memset(row + hidden_, 0, (padded(hidden_) - hidden_) * sizeof(float));
      }
    }
    if (runner_.thread() == 0) {
      runner_.embed_row(*call_.base, token, runner_.stream(micro, num_rows - 1));
    }
    runner_.barrier();
    Part part;
    part.cache = {job_.extra.micro_keys.get(), job_.extra.micro_values.get(), Type::f32,
                  num_features_ + grafts_.max_steps,  micro.shape.num_kv_heads,       micro.shape.head_dim};
    part.past = past;
    part.num_rows = num_rows;
    int64_t positions[kMaxRows];
    for (int t = 0; t < num_rows; ++t) {
      positions[t] = past + t;
    }
    runner_.layers(micro, &part, 1, num_rows, positions, Features{});
    float* row = runner_.normed();
    if (micro.final_norm != nullptr) {
      runner_.norm_row(micro, num_rows - 1, row);
    } else {
      std::memcpy(row, runner_.stream(micro, num_rows - 1), padded(hidden_) * sizeof(float));
    }
    int64_t next = 0;
    runner_.best_tokens(*call_.base, 1, &next, &result_.finite);
    return next;
  }

  // asks the stop head about the row at normed()
  bool goes_on() {
    const int64_t width = padded(grafts_.stop_width);
    float* inner[2] = {job_.extra.inner.get(), job_.extra.inner.get() + width};
    const float* input = runner_.normed();
    for (int layer = 0; layer < 2; ++layer) {
      const int blocks = grafts_.stop[layer].num_blocks(), first = runner_.begin_of(blocks), last = runner_.end_of(blocks);
      kernels_.project(grafts_.stop[layer], input, width, 1, first, last, inner[layer], 0);
      kernels_.silu(inner[layer] + static_cast<int64_t>(first) * kBlock, static_cast<int64_t>(last - first) * kBlock);
      runner_.barrier();
      input = inner[layer];
    }
    alignas(64) float logits[kBlock];
    kernels_.project(grafts_.stop[2], input, width, 1, 0, 1, logits, 0);
    const double probability = 1.0 / (1.0 + std::exp(static_cast<double>(logits[0])));
    if (runner_.thread() == 0) {
      call_.probabilities[result_.num_asked] = probability;
    }
    ++result_.num_asked;
    result_.stop_finite = !std::isnan(probability);
    return result_.stop_finite && probability >= call_.thresholds[result_.num_tokens - 1];
  }

  void load_row(const float* from) {
    float* row = runner_.normed();
    std::memcpy(row, from, hidden_ * sizeof(float));
    std::memset(row + hidden_, 0, (padded(hidden_) - hidden_) * sizeof(float));
  }

  Job& job_;
  const Grafts& grafts_;
  const MacroCall& call_;
  const Kernels& kernels_;
  Runner runner_;
  const int64_t hidden_;
  const int num_features_;
  MacroResult result_;
};

void work(void* context, Team& team, int thread) { MacroStep(*static_cast<Job*>(context), team, thread).run(); }

}  // namespace

MacroResult macro_step(const Grafts& grafts, const Kernels& kernels, int threads, const MacroCall& call) {
  thread_local Extra extra;
  const Shape& shape = call.base->shape;
  const int num_features = static_cast<int>(grafts.feature_layers.size());
  const int64_t slots = num_features + grafts.max_steps;
  // merging keeps embeddings, their mean, the mixed values and keys of all tokens in a thread's own rows
  const int own_rows = 3 * grafts.max_steps + 3;
  const int rows = own_rows > num_features + 1 ? own_rows : num_features + 1;
  const int64_t reach = call.part.past + 1;
  extra.workspace.prepare(shape, rows, reach > slots ? reach : slots, threads);
  const size_t micro_size = static_cast<size_t>(grafts.micro->shape.num_layers) * shape.num_kv_heads * slots * shape.head_dim;
  extra.micro_keys.ensure(micro_size);
  extra.micro_values.ensure(micro_size);
  extra.merging.ensure(padded(shape.hidden) + grafts.max_steps * padded(2 * static_cast<int64_t>(shape.hidden)));
  extra.inner.ensure(2 * padded(grafts.stop_width));
  Job job{grafts, kernels, call, extra, {}};
  run_together(threads, work, &job);
  return job.result;
}

}  // namespace hb
