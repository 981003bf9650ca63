#include "pool.h"

#include <pthread.h>

#include <chrono>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hb {
namespace {

using Clock = std::chrono::steady_clock;

// A stage between two barriers takes some 30 µs. Who waits longer than this is waiting for a thread that lost its core.
constexpr auto kSpin = std::chrono::microseconds(60);
// between two calls the interpreter runs for some 20 to 100 µs
constexpr auto kIdleSpin = std::chrono::microseconds(250);
constexpr int kMostThreads = 255;
constexpr int kSpinsPerLook = 32;
constexpr double kDearShare = 0.35;  // of a call's time spent waiting, from which on threads don't pay
constexpr int kDearCalls = 3;        // in a row
constexpr auto kFirstPause = std::chrono::milliseconds(50);
constexpr auto kLongestPause = std::chrono::seconds(2);
constexpr int kGoodCalls = 64;  // in a row that make the next pause the first one's length again

std::atomic<bool> may_go_alone{true};

int64_t ns_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
#ifdef __linux__
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain word");
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  if (word.load(std::memory_order_acquire) == value) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#ifdef __linux__
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

// waits until the word is no longer `value`: spins at first, then sleeps
void wait_while(std::atomic<uint32_t>& word, uint32_t value, std::atomic<uint32_t>& sleepers,
                std::chrono::nanoseconds spin) {
  Clock::time_point start;
  for (int64_t spins = 0; word.load(std::memory_order_acquire) == value; ++spins) {
    relax();
    if (spins == 0) {
      start = Clock::now();
    } else if (spins % kSpinsPerLook == 0 && Clock::now() - start > spin) {
      // the waker looks at the sleepers after it changed the word: one of the two sees the other
      sleepers.fetch_add(1, std::memory_order_seq_cst);
      while (word.load(std::memory_order_seq_cst) == value) {
        sleep_while(word, value);
      }
      sleepers.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
  }
}

class Pool {
 public:
  void run(int threads, Work work, void* context) {
    std::lock_guard<std::mutex> turn(turn_);
    const auto start = Clock::now();
    ++counts_.calls;
    int size = threads < kMostThreads ? threads : kMostThreads;
    if (size > 1 && start < alone_until_ && may_go_alone.load(std::memory_order_relaxed)) {
      ++counts_.alone;
      size = 1;
    }
    size = grow(size);
    team_.begin(size);
    counts_.last_size = size;
    if (size == 1) {
      work(context, team_, 0);
      return;
    }
    ++counts_.together;
    work_ = work;
    context_ = context;
    left_.store(static_cast<uint32_t>(size - 1), std::memory_order_relaxed);
    call_.store(next_call(size), std::memory_order_seq_cst);
    if (idle_.load(std::memory_order_seq_cst) > 0) {
      wake_all(call_);
    }
    work(context, team_, 0);
    // the last barrier of a call is behind all work: who still runs is about to return
    for (int64_t spins = 0; left_.load(std::memory_order_acquire) != 0; ++spins) {
      relax();
      if (spins > 1000) {
        std::this_thread::yield();
      }
    }
    judge(ns_since(start));
  }

  void forget_waits() {
    std::lock_guard<std::mutex> turn(turn_);
    dear_calls_ = 0;
    good_calls_ = 0;
    pause_ = kFirstPause;
    alone_until_ = {};
  }

  PoolCounts counts() {
    std::lock_guard<std::mutex> turn(turn_);
    return counts_;
  }

 private:
  // Starts workers until there are enough; gives the size that can be had. Workers never end: they sleep.
  int grow(int size) {
    while (workers_ + 1 < size) {
      try {
        std::thread(&Pool::serve, this, workers_ + 1, call_.load(std::memory_order_relaxed)).detach();
      } catch (const std::system_error&) {
        return workers_ + 1;
      }
      ++workers_;
    }
    return size;
  }

  // A call's number, and in its lowest byte its size: a worker that is not needed reads nothing else of it.
  uint32_t next_call(int size) const {
    const uint32_t number = (call_.load(std::memory_order_relaxed) >> 8) + 1;
    return number << 8 | static_cast<uint32_t>(size);
  }

  void serve(int number, uint32_t seen) {
    for (;;) {
      wait_while(call_, seen, idle_, kIdleSpin);
      seen = call_.load(std::memory_order_acquire);
      if (number < static_cast<int>(seen & 0xffu)) {
        work_(context_, team_, number);
        left_.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  // Goes on alone for a while once waiting has eaten several calls, twice as long each time.
  void judge(int64_t took_ns) {
    if (static_cast<double>(team_.waited_ns()) < kDearShare * static_cast<double>(took_ns)) {
      dear_calls_ = 0;
      if (++good_calls_ >= kGoodCalls) {
        pause_ = kFirstPause;
      }
      return;
    }
    good_calls_ = 0;
    if (++dear_calls_ >= kDearCalls) {
      // one more dear call after the pause is enough for the next one
      dear_calls_ = kDearCalls - 1;
      alone_until_ = Clock::now() + pause_;
      pause_ = pause_ * 2 < kLongestPause ? pause_ * 2 : kLongestPause;
    }
  }

  std::mutex turn_;
  Team team_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  int workers_ = 0;
  int dear_calls_ = 0;
  int good_calls_ = 0;
  Clock::time_point alone_until_{};
  std::chrono::nanoseconds pause_ = kFirstPause;
  PoolCounts counts_{};
  alignas(64) std::atomic<uint32_t> call_{0};
  alignas(64) std::atomic<uint32_t> idle_{0};
  alignas(64) std::atomic<uint32_t> left_{0};
};

std::atomic<Pool*> the_pool{nullptr};
std::once_flag fork_handler;

// Threads don't survive a fork: the child leaves the parent's pool as it is, and makes its own when it needs one.
void forget_pool() { the_pool.store(nullptr, std::memory_order_relaxed); }

Pool& pool() {
  Pool* current = the_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    std::call_once(fork_handler, [] { pthread_atfork(nullptr, nullptr, forget_pool); });
    auto* fresh = new Pool;
    if (the_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) {
      return *fresh;
    }
    delete fresh;
  }
  return *current;
}

}  // namespace

void Team::barrier(int thread) {
  if (size == 1) {
    return;
  }
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size)) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      wake_all(generation_);
    }
    return;
  }
  const auto start = Clock::now();
  wait_while(generation_, generation, sleepers_, kSpin);
  if (thread == 0) {
    waited_ns_ += ns_since(start);
  }
}

void run_together(int threads, Work work, void* context) { pool().run(threads, work, context); }

PoolCounts pool_counts() { return pool().counts(); }

void pool_forget_waits() { pool().forget_waits(); }

void pool_may_go_alone(bool allowed) { may_go_alone.store(allowed, std::memory_order_relaxed); }

}  // namespace hb
