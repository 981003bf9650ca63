#include "macro_step.h"

#include <cmath>
#include <cstring>

namespace hb {
namespace {

// what macro-steps need next to a forward's workspace, kept from call to call
struct Extra {
  Workspace workspace;
  Buffer features;  // [F][N][D] of N sequences
  Buffer micro_keys, micro_values;  // a cache for each sequence
  Buffer merging;  // query [D], then keys and values [S][2 D]
  Buffer inner;    // two hidden layers of the stop head [N][W]
};

struct Job {
  const Grafts& grafts;
  const Kernels& kernels;
  MacroCall& call;
  Extra& extra;
};

// One thread's part; all threads take the same turns, because all know the same tokens and probabilities. Sequences that go
// on are the rows 0..num-1 of every stage, in order.
class MacroSteps {
 public:
  MacroSteps(Job& job, Team& team, int thread)
      : job_(job),
        grafts_(job.grafts),
        call_(job.call),
        kernels_(job.kernels),
        runner_(job.kernels, job.extra.workspace, team, thread),
        hidden_(job.call.base->shape.hidden),
        num_sequences_(static_cast<int>(job.call.sequences.size())),
        num_features_(static_cast<int>(job.grafts.feature_layers.size())) {}

  void run() {
    if (call_.slot_base == nullptr) {
      take_first();
    } else {
      base_tokens();
    }
    num_active_ = num_sequences_;
    for (int i = 0; i < num_sequences_; ++i) {
      active_[i] = i;
      num_asked_[i] = 0;
      load_row(features(num_features_ - 1, i), i);
    }
    for (int step = 1;; ++step) {
      emit(step);
      keep([&](int a) {
        return finite_[a] && step < grafts_.max_steps && call_.sequences[active_[a]].thresholds != nullptr;
      });
      ask(step);
      if (num_active_ == 0) {
        break;
      }
      micro_tokens(step);
    }
  }

 private:
  float* features(int feature, int sequence) const {
    return job_.extra.features.get() + (static_cast<int64_t>(feature) * num_sequences_ + sequence) * hidden_;
  }
  float* row(int index) const { return runner_.normed() + index * Runner::stride(hidden_); }

  // what a prompt left: token 1 and features of each sequence
  void take_first() {
    for (int i = 0; i < num_sequences_; ++i) {
      const MacroSequence& sequence = call_.sequences[i];
      tokens_[i] = sequence.first_token;
      finite_[i] = true;
      for (int f = runner_.begin_of(num_features_); f < runner_.end_of(num_features_); ++f) {
        std::memcpy(features(f, i), sequence.features + static_cast<int64_t>(f) * hidden_, hidden_ * sizeof(float));
      }
    }
    runner_.barrier();
  }

  // gives the merged tokens of each sequence their slot; token 1 of its new macro-step
  void base_tokens() {
    const Model& base = *call_.slot_base;
    Part parts[kMaxRows];
    int64_t positions[kMaxRows];
    for (int i = 0; i < num_sequences_; ++i) {
      const MacroSequence& sequence = call_.sequences[i];
      parts[i] = sequence.part;
      positions[i] = sequence.position;
      finite_[i] = true;
      if (sequence.num_merged > 1) {
        merge(base, i);
      } else if (i >= runner_.begin_of(num_sequences_) && i < runner_.end_of(num_sequences_)) {
        runner_.embed_row(*call_.base, sequence.merged[0], runner_.stream(base, i));
      }
    }
    runner_.barrier();
    runner_.layers(base, parts, num_sequences_, num_sequences_, positions,
                   Features{grafts_.feature_layers.data(), num_features_, job_.extra.features.get()});
    // features are copied by whoever owns the row: all must see them
    runner_.barrier();
    const bool is_last = grafts_.feature_layers.back() + 1 == base.shape.num_layers;
    for (int i = 0; i < num_sequences_; ++i) {
      if (is_last) {
        runner_.norm_row(base, i, row(i));
      } else {
        load_row(features(num_features_ - 1, i), i);
      }
    }
    runner_.best_tokens(is_last ? base : *call_.base, num_sequences_, tokens_, finite_);
  }

  // one input vector for several tokens, as a sequence's row of the stream
  void merge(const Model& base, int index) {
    const MacroSequence& sequence = call_.sequences[index];
    const int num = sequence.num_merged;
    const int64_t stride = Runner::stride(hidden_), pair = padded(2 * hidden_);
    // this thread's own copy of the embeddings, and their mean behind them
    float* rows = runner_.normed();
    float* mean = rows + num * stride;
    // the embedding table is the base's own, whatever the slot goes through
    const Model& table = *call_.base;
    std::memset(mean, 0, padded(hidden_) * sizeof(float));
    for (int t = 0; t < num; ++t) {
      float* embedded = rows + t * stride;
      runner_.embed_row(table, sequence.merged[t], embedded);
      for (int64_t i = 0; i < hidden_; ++i) {
        mean[i] += embedded[i];
      }
    }
    kernels_.scale(mean, 1.0f / static_cast<float>(num), hidden_);
    float* query = job_.extra.merging.get();
    float* keyed = query + padded(hidden_);
    const int query_blocks = grafts_.query.num_blocks(), keyed_blocks = grafts_.keyed.num_blocks();
    kernels_.project(grafts_.query, mean, stride, 1, runner_.begin_of(query_blocks), runner_.end_of(query_blocks),
                     runner_.codes(), query, 0);
    kernels_.project(grafts_.keyed, rows, stride, num, runner_.begin_of(keyed_blocks), runner_.end_of(keyed_blocks),
                     runner_.codes(), keyed, pair);
    runner_.barrier();
    float* mixed = mean + stride;
    mix(query, keyed, pair, num, mixed);
    float* residual = runner_.stream(base, index);
    const float* start = grafts_.residual_is_last ? rows + (num - 1) * stride : mean;
    const int blocks = grafts_.out.num_blocks(), first = runner_.begin_of(blocks), last = runner_.end_of(blocks);
    std::memcpy(residual + static_cast<int64_t>(first) * kBlock, start + static_cast<int64_t>(first) * kBlock,
                static_cast<size_t>(last - first) * kBlock * sizeof(float));
    kernels_.project_add(grafts_.out, mixed, stride, 1, first, last, runner_.codes(), residual, 0);
    // the next sequence's query and keys take the place of these
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

  void emit(int step) {
    if (runner_.thread() != 0) {
      return;
    }
    for (int a = 0; a < num_active_; ++a) {
      MacroSequence& sequence = call_.sequences[active_[a]];
      sequence.tokens[step - 1] = tokens_[a];
      sequence.num_tokens = step;
      sequence.finite = finite_[a];
    }
  }

  // lets sequences go whose turn is over; what the others have moves up, their heads' rows as well
  template <typename Stays>
  void keep(Stays stays) {
    int kept = 0;
    for (int a = 0; a < num_active_; ++a) {
      if (!stays(a)) {
        continue;
      }
      if (kept != a) {
        active_[kept] = active_[a];
        tokens_[kept] = tokens_[a];
        finite_[kept] = finite_[a];
        std::memcpy(row(kept), row(a), padded(hidden_) * sizeof(float));
      }
      ++kept;
    }
    num_active_ = kept;
  }

  // asks the stop head about the heads' rows; who ends here is let go
  void ask(int step) {
    if (num_active_ == 0) {
      return;
    }
    const int64_t width = padded(grafts_.stop_width);
    float* inner[2] = {job_.extra.inner.get(), job_.extra.inner.get() + num_sequences_ * width};
    const float* input = runner_.normed();
    int64_t stride = Runner::stride(hidden_);
    for (int layer = 0; layer < 2; ++layer) {
      const int blocks = grafts_.stop[layer].num_blocks(), first = runner_.begin_of(blocks), last = runner_.end_of(blocks);
      kernels_.project(grafts_.stop[layer], input, stride, num_active_, first, last, runner_.codes(), inner[layer], width);
      for (int a = 0; a < num_active_; ++a) {
        kernels_.silu(inner[layer] + a * width + static_cast<int64_t>(first) * kBlock,
                      static_cast<int64_t>(last - first) * kBlock);
      }
      runner_.barrier();
      input = inner[layer];
      stride = width;
    }
    alignas(64) float logits[kMaxRows * kBlock];
    kernels_.project(grafts_.stop[2], input, width, num_active_, 0, 1, runner_.codes(), logits, kBlock);
    bool goes_on[kMaxRows];
    for (int a = 0; a < num_active_; ++a) {
      const int index = active_[a];
      MacroSequence& sequence = call_.sequences[index];
      const double probability = 1.0 / (1.0 + std::exp(static_cast<double>(logits[a * kBlock])));
      goes_on[a] = probability >= sequence.thresholds[step - 1];
      ++num_asked_[index];
      if (runner_.thread() == 0) {
        sequence.probabilities[num_asked_[index] - 1] = probability;
        sequence.num_asked = num_asked_[index];
        sequence.stop_finite = !std::isnan(probability);
      }
    }
    keep([&](int a) { return goes_on[a]; });
  }

  // one more token of each from its newest one
  void micro_tokens(int step) {
    const Model& micro = *grafts_.micro;
    const bool first = step == 1;
    const int num_rows = first ? num_features_ + 1 : 1;
    const int64_t past = first ? 0 : num_features_ + step - 1;
    Part parts[kMaxRows];
    int64_t positions[kMaxRows];
    const int64_t slots = num_features_ + grafts_.max_steps;
    const size_t size = static_cast<size_t>(micro.shape.num_layers) * micro.shape.num_kv_heads * slots * micro.shape.head_dim;
    for (int a = 0; a < num_active_; ++a) {
      Part& part = parts[a];
      part.cache = {job_.extra.micro_keys.get() + active_[a] * size, job_.extra.micro_values.get() + active_[a] * size,
                    Type::f32, slots, micro.shape.num_kv_heads, micro.shape.head_dim};
      part.past = past;
      part.first_row = a * num_rows;
      part.num_rows = num_rows;
      for (int t = 0; t < num_rows; ++t) {
        positions[part.first_row + t] = past + t;
      }
    }
    const int all_rows = num_active_ * num_rows;
    for (int t = runner_.begin_of(all_rows); t < runner_.end_of(all_rows); ++t) {
      const int a = t / num_rows, within = t % num_rows;
      float* to = runner_.stream(micro, t);
      if (within == num_rows - 1) {
        runner_.embed_row(*call_.base, tokens_[a], to);
      } else {
        std::memcpy(to, features(within, active_[a]), hidden_ * sizeof(float));
        std::memset(to + hidden_, 0, (padded(hidden_) - hidden_) * sizeof(float));
      }
    }
    runner_.barrier();
    runner_.layers(micro, parts, num_active_, all_rows, positions, Features{});
    for (int a = 0; a < num_active_; ++a) {
      const int last = (a + 1) * num_rows - 1;
      if (micro.final_norm != nullptr) {
        runner_.norm_row(micro, last, row(a));
      } else {
        std::memcpy(row(a), runner_.stream(micro, last), padded(hidden_) * sizeof(float));
      }
    }
    runner_.best_tokens(*call_.base, num_active_, tokens_, finite_);
  }

  void load_row(const float* from, int index) {
    std::memcpy(row(index), from, hidden_ * sizeof(float));
    std::memset(row(index) + hidden_, 0, (padded(hidden_) - hidden_) * sizeof(float));
  }

  Job& job_;
  const Grafts& grafts_;
  MacroCall& call_;
  const Kernels& kernels_;
  Runner runner_;
  const int64_t hidden_;
  const int num_sequences_, num_features_;
  // sequences that go on, their newest tokens, and whether these came from finite logits
  int num_active_ = 0;
  int active_[kMaxRows];
  int64_t tokens_[kMaxRows];
  bool finite_[kMaxRows];
  int num_asked_[kMaxRows];
};

void work(void* context, Team& team, int thread) { MacroSteps(*static_cast<Job*>(context), team, thread).run(); }

}  // namespace

void macro_steps(const Grafts& grafts, const Kernels& kernels, int threads, MacroCall& call) {
  thread_local Extra extra;
  const Shape& shape = call.base->shape;
  const int num_features = static_cast<int>(grafts.feature_layers.size()), num = static_cast<int>(call.sequences.size());
  const int64_t slots = num_features + grafts.max_steps;
  // merging keeps embeddings, their mean, the mixed values and keys of all tokens in a thread's own rows
  const int own_rows = 3 * grafts.max_steps + 3, micro_rows = num * (num_features + 1);
  int64_t reach = slots;
  for (const MacroSequence& sequence : call.sequences) {
    reach = sequence.part.past + 1 > reach ? sequence.part.past + 1 : reach;
  }
  extra.workspace.prepare(shape, own_rows > micro_rows ? own_rows : micro_rows, reach, threads, grafts.stop_width);
  const size_t micro_size = static_cast<size_t>(grafts.micro->shape.num_layers) * shape.num_kv_heads * slots * shape.head_dim;
  extra.features.ensure(static_cast<size_t>(num_features) * num * shape.hidden);
  extra.micro_keys.ensure(num * micro_size);
  extra.micro_values.ensure(num * micro_size);
  extra.merging.ensure(padded(shape.hidden) + grafts.max_steps * padded(2 * static_cast<int64_t>(shape.hidden)));
  extra.inner.ensure(2 * num * padded(grafts.stop_width));
  Job job{grafts, kernels, call, extra};
  run_together(threads, work, &job);
}

}  // namespace hb
