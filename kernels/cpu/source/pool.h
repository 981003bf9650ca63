// Threads that run one function together, with barriers between its stages.
#pragma once

#include <atomic>
#include <cstdint>

namespace hb {

// The threads of one call. Thread 0 is the caller's own.
class Team {
 public:
  int size = 1;
  // no thread returns before all have called it; what each wrote before is seen by all after
  void barrier(int thread);
  // nanoseconds that thread 0 waited at barriers in this call
  int64_t waited_ns() const { return waited_ns_; }
  void begin(int threads) {
    size = threads;
    waited_ns_ = 0;
  }

 private:
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> sleepers_{0};
  int64_t waited_ns_ = 0;
};

using Work = void (*)(void* context, Team& team, int thread);

// Runs `work` on up to `threads` threads and returns when all are done. One call at a time: others wait for their turn.
// A call may get fewer threads than it asks for: bits don't depend on their number.
void run_together(int threads, Work work, void* context);

// calls so far, those that ran on one thread because waiting had become dear, those on several, and threads of the last
struct PoolCounts {
  int64_t calls;
  int64_t alone;
  int64_t together;
  int32_t last_size;
};
PoolCounts pool_counts();

// Whether calls may go on alone where waiting is dear; outlives a fork.
void pool_may_go_alone(bool allowed);

// The next call runs on several threads again, whatever waiting has cost before: it is another's work that begins.
void pool_forget_waits();

}  // namespace hb
