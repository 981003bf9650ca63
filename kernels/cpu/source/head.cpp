// From the last layer's rows to logits, tokens and how sure the model is of them.
#include <cmath>
#include <cstring>

#include "forward.h"

namespace hb {
namespace {

// ranges of ids come in ascending order: the first of equals has the lowest
void take_larger(Best& best, const Best& next) {
  const int32_t is_nan = best.is_nan | next.is_nan;
  if (next.logit > best.logit) {
    best = next;
  }
  best.is_nan = is_nan;
}

}  // namespace

void Runner::best_tokens(const Model& model, int num_rows, int64_t* tokens, bool* finite, double* highest) {
  Best best[kMaxRows];
  if (highest == nullptr) {
    find_best(model, num_rows, best);
  } else {
    find_likely(model, num_rows, best, highest);
  }
  for (int t = 0; t < num_rows; ++t) {
    tokens[t] = best[t].token < model.shape.vocab ? best[t].token : 0;
    finite[t] = finite[t] && best[t].is_nan == 0 && std::isfinite(best[t].logit);
  }
}

void Runner::find_best(const Model& model, int num_rows, Best* best) {
  const int blocks = model.head.num_blocks();
  Best* all = workspace_.best.data();
  kernels_.project_best(model.head, normed(), stride(model.shape.hidden), num_rows, begin_of(blocks), end_of(blocks),
                        codes(), model.shape.vocab, all + static_cast<size_t>(thread_) * kMaxRows);
  fetch(model.layers[0].qkv, begin_of(model.layers[0].qkv.num_blocks()));
  barrier();
  for (int t = 0; t < num_rows; ++t) {
    best[t] = all[t];
    for (int other = 1; other < team_.size; ++other) {
      take_larger(best[t], all[static_cast<size_t>(other) * kMaxRows + t]);
    }
  }
}

void Runner::find_likely(const Model& model, int num_rows, Best* best, double* highest) {
  const int vocab = model.shape.vocab, num_chunks = num_logit_chunks(vocab);
  float* rows = workspace_.logits.get();
  Weighed* all = workspace_.weighed.data();
  logits(model, num_rows, rows);
  barrier();
  // chunks are fixed and their sums are added in order, so that bits don't depend on who weighs which
  const int64_t tasks = static_cast<int64_t>(num_rows) * num_chunks;
  for (int task = begin_of(tasks); task < end_of(tasks); ++task) {
    const int first = task % num_chunks * kLogitChunk, left = vocab - first;
    const float* from = rows + static_cast<int64_t>(task / num_chunks) * vocab + first;
    kernels_.weigh(from, first, left < kLogitChunk ? left : kLogitChunk, all + task);
  }
  fetch(model.layers[0].qkv, begin_of(model.layers[0].qkv.num_blocks()));
  barrier();
  for (int t = 0; t < num_rows; ++t) {
    const Weighed* own = all + static_cast<int64_t>(t) * num_chunks;
    best[t] = own[0].best;
    for (int c = 1; c < num_chunks; ++c) {
      take_larger(best[t], own[c].best);
    }
    double sum = 0.0;
    for (int c = 0; c < num_chunks; ++c) {
      // a chunk of minus infinity only weighs nothing, and its own sum is no number
      if (own[c].best.logit > -INFINITY) {
        sum += own[c].sum * std::exp(static_cast<double>(own[c].best.logit) - best[t].logit);
      }
    }
    highest[t] = 1.0 / sum;
  }
}

void Runner::logits(const Model& model, int num_rows, float* logits) {
  const int64_t vocab = model.shape.vocab;
  const int whole = static_cast<int>(vocab / kBlock), blocks = model.head.num_blocks();
  const int first = begin_of(blocks), last = end_of(blocks), last_whole = last < whole ? last : whole;
  if (first < last_whole) {
    kernels_.project(model.head, normed(), stride(model.shape.hidden), num_rows, first, last_whole, codes(), logits, vocab);
  }
  if (last > whole && first <= whole) {
    // a block of which only a part are logits
    alignas(64) float tile[kMaxRows * kBlock];
    Matrix end = model.head;
    end.blocks = model.head.block(whole);
    end.outputs = kBlock;
    end.scales = end.scales == nullptr ? nullptr : end.scales + static_cast<int64_t>(whole) * kBlock;
    end.bias = end.bias == nullptr ? nullptr : end.bias + static_cast<int64_t>(whole) * kBlock;
    kernels_.project(end, normed(), stride(model.shape.hidden), num_rows, 0, 1, codes(), tile, kBlock);
    for (int t = 0; t < num_rows; ++t) {
      std::memcpy(logits + t * vocab + static_cast<int64_t>(whole) * kBlock, tile + t * kBlock,
                  (vocab - static_cast<int64_t>(whole) * kBlock) * sizeof(float));
    }
  }
}

}  // namespace hb
