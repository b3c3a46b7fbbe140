// A small pool of threads that stays alive between calls.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace autotune::cpu {

class Pool {
 public:
  // The process's pool. After a fork the child gets a new one, because threads do not survive it.
  static Pool& instance();

  // Held by a caller for all of its `run` and `scratch`; other callers wait.
  std::mutex& mutex() { return mutex_; }

  // Calls task(0) to task(count - 1) in any order, on at most `threads` threads with the caller as one.
  void run(int threads, int64_t count, const std::function<void(int64_t)>& task);

  // Keeps each thread but the caller on one of these CPUs; with none, all run where the caller may.
  void pin(std::vector<int> cpus);

  // At least `size` floats on a cache line's boundary, kept between calls, with no defined content.
  float* scratch(size_t size);

 private:
  struct Worker {
    std::atomic<int> state{0};
    std::atomic<int> cpu{-1};  // where it was last seen
    std::thread::native_handle_type thread;
    std::mutex mutex;
    std::condition_variable wake;
  };

  void add_worker();
  void place(size_t index);
  void serve(Worker& worker);
  void work();

  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<int> cpus_;
  const std::function<void(int64_t)>* task_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::vector<float> scratch_;
};

}  // namespace autotune::cpu
