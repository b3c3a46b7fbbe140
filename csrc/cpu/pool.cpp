#include "cpu/pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

namespace autotune::cpu {
namespace {

enum State : int { kIdle, kPosted, kRunning };

// Spans the gap between calls in a row. Longer was slower between torch's own operations, whose idle threads
// spin too: a thread that sleeps is put before one that spins.
constexpr auto kSpin = std::chrono::microseconds(50);

std::atomic<Pool*> current{nullptr};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// True as soon as done() is, false when kSpin has passed before.
template <class Done>
bool spin_until(Done done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

int current_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Lets the thread run on every CPU of the caller but `cpu`; a system that has no such call leaves it.
void keep_off(pthread_t thread, int cpu) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed) != 0) return;
  if (cpu >= 0) CPU_CLR(cpu, &allowed);
  if (CPU_COUNT(&allowed) > 0) pthread_setaffinity_np(thread, sizeof allowed, &allowed);
#else
  static_cast<void>(thread);
  static_cast<void>(cpu);
#endif
}

void keep_on(pthread_t thread, int cpu) {
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  CPU_SET(cpu, &allowed);
  pthread_setaffinity_np(thread, sizeof allowed, &allowed);
#else
  static_cast<void>(thread);
  static_cast<void>(cpu);
#endif
}

}  // namespace

Pool& Pool::instance() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { current = nullptr; });
  static_cast<void>(registered);
  Pool* pool = current;
  if (pool != nullptr) return *pool;
  auto fresh = std::make_unique<Pool>();
  // Never destroyed: its threads may be asleep in it when the process ends.
  return current.compare_exchange_strong(pool, fresh.get()) ? *fresh.release() : *pool;
}

void Pool::run(int threads, int64_t count, const std::function<void(int64_t)>& task) {
  task_ = &task;
  count_ = count;
  next_ = 0;
  const size_t wanted = static_cast<size_t>(std::min<int64_t>(threads, count)) - 1;
  try {
    while (workers_.size() < wanted) add_worker();
  } catch (const std::system_error&) {
    // The system gives no more threads: those that exist do the same work.
  }
  const size_t helping = std::min(wanted, workers_.size());
  const int here = current_cpu();
  for (size_t i = 0; i < helping; ++i) {
    Worker& worker = *workers_[i];
    // A kernel may wake a thread on its waker's CPU, where it would wait until there is nothing left to do.
    if (cpus_.empty() && here >= 0 && worker.cpu == here) keep_off(worker.thread, here);
    {
      std::lock_guard<std::mutex> lock(worker.mutex);
      worker.state = kPosted;
    }
    worker.wake.notify_one();
  }
  work();
  for (size_t i = 0; i < helping; ++i) {
    std::atomic<int>& state = workers_[i]->state;
    // A thread that has not begun by now is not needed any more.
    int posted = kPosted;
    state.compare_exchange_strong(posted, kIdle);
    const auto idle = [&] { return state == kIdle; };
    while (!spin_until(idle)) std::this_thread::yield();
  }
}

void Pool::pin(std::vector<int> cpus) {
  cpus_ = std::move(cpus);
  for (size_t i = 0; i < workers_.size(); ++i) place(i);
}

float* Pool::scratch(size_t size) {
  constexpr size_t kLine = 64 / sizeof(float);
  if (scratch_.size() < size + kLine) scratch_ = std::vector<float>(size + kLine);
  const size_t past = reinterpret_cast<uintptr_t>(scratch_.data()) / sizeof(float) % kLine;
  return scratch_.data() + (kLine - past) % kLine;
}

void Pool::add_worker() {
  auto worker = std::make_unique<Worker>();
  std::thread thread(&Pool::serve, this, std::ref(*worker));
  worker->thread = thread.native_handle();
  thread.detach();
  workers_.push_back(std::move(worker));
  if (!cpus_.empty()) place(workers_.size() - 1);
}

void Pool::place(size_t index) {
  const pthread_t thread = workers_[index]->thread;
  if (cpus_.empty()) {
    keep_off(thread, -1);
  } else {
    keep_on(thread, cpus_[index % cpus_.size()]);
  }
}

void Pool::serve(Worker& worker) {
  const auto posted = [&] { return worker.state == kPosted; };
  for (;;) {
    worker.cpu = current_cpu();
    if (!spin_until(posted)) {
      std::unique_lock<std::mutex> lock(worker.mutex);
      worker.wake.wait(lock, posted);
    }
    int expected = kPosted;
    if (!worker.state.compare_exchange_strong(expected, kRunning)) continue;
    work();
    worker.state = kIdle;
  }
}

void Pool::work() {
  for (int64_t i = next_++; i < count_; i = next_++) (*task_)(i);
}

}  // namespace autotune::cpu
