// Drives the pool of threads as forwards do, for ThreadSanitizer: work between barriers, calls of changing size, idle
// spells and slow threads that make others sleep in a futex, calls that go alone, callers on several threads, a fork.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

constexpr int kThreads = 5, kStages = 40, kCalls = 300;

struct Job {
  std::vector<long> values;  // plain memory: the barriers alone order what threads write and read
  bool slow = false;
};

// each stage adds up what all threads wrote in the stage before
void work(void* context, hb::Team& team, int thread) {
  auto& job = *static_cast<Job*>(context);
  const int size = team.size;
  long* cells[2] = {job.values.data(), job.values.data() + kThreads};
  cells[0][thread] = 1;
  team.barrier(thread);
  for (int stage = 0; stage < kStages; ++stage) {
    const long* from = cells[stage % 2];
    long sum = 0;
    for (int i = 0; i < size; ++i) {
      sum += from[i];
    }
    if (job.slow && thread == size - 1) {
      // longer than the others spin
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    cells[1 - stage % 2][thread] = sum % 1000 + thread;
    team.barrier(thread);
  }
}

long expected(int size) {
  std::vector<long> from(size, 1), to(size);
  for (int stage = 0; stage < kStages; ++stage) {
    long sum = 0;
    for (long value : from) {
      sum += value;
    }
    for (int i = 0; i < size; ++i) {
      to[i] = sum % 1000 + i;
    }
    from.swap(to);
  }
  long total = 0;
  for (long value : from) {
    total += value;
  }
  return total;
}

// number of wrong results
int drive(int calls, bool slow) {
  int wrong = 0;
  for (int call = 0; call < calls; ++call) {
    const int threads = 1 + call % kThreads;
    Job job{std::vector<long>(2 * kThreads), slow};
    int size = 0;
    struct Context {
      Job* job;
      int* size;
    } context{&job, &size};
    hb::run_together(
        threads,
        [](void* given, hb::Team& team, int thread) {
          auto& both = *static_cast<Context*>(given);
          if (thread == 0) {
            *both.size = team.size;
          }
          work(both.job, team, thread);
        },
        &context);
    const long* last = job.values.data() + kStages % 2 * kThreads;
    long total = 0;
    for (int i = 0; i < size; ++i) {
      total += last[i];
    }
    wrong += size < 1 || size > threads || total != expected(size);
    if (call % 50 == 49) {
      // longer than idle threads spin
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  return wrong;
}

int drive_from_several(int callers, bool slow) {
  std::vector<int> wrong(callers);
  std::vector<std::thread> threads;
  for (int i = 0; i < callers; ++i) {
    threads.emplace_back([&wrong, i, slow] { wrong[i] = drive(slow ? 10 : kCalls, slow); });
  }
  int total = 0;
  for (int i = 0; i < callers; ++i) {
    threads[i].join();
    total += wrong[i];
  }
  return total;
}

}  // namespace

int main() {
  hb::pool_may_go_alone(false);
  int wrong = drive(kCalls, false) + drive_from_several(3, false) + drive_from_several(2, true);
  const hb::PoolCounts together = hb::pool_counts();
  hb::pool_may_go_alone(true);
  wrong += drive(60, true);
  const hb::PoolCounts mixed = hb::pool_counts();
  // within the pause of a call that went alone, another's first call runs together
  for (int64_t alone = mixed.alone; alone == hb::pool_counts().alone;) {
    wrong += drive(kThreads, true);
  }
  const int64_t before = hb::pool_counts().together;
  hb::pool_forget_waits();
  wrong += drive(2, false);
  const bool is_forgotten = hb::pool_counts().together == before + 1;
  const pid_t child = fork();
  if (child == 0) {
    _exit(drive(50, false) == 0 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  wrong += status != 0;
  wrong += drive(20, false);
  const int64_t num_forbidden = together.alone, num_together = together.together, num_alone = mixed.alone;
  std::printf("wrong %d, together %lld, alone %lld, alone though forbidden %lld, forgotten %d\n", wrong,
              static_cast<long long>(num_together), static_cast<long long>(num_alone), static_cast<long long>(num_forbidden),
              is_forgotten);
  return 0;
}
