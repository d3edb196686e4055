// Running numbered pieces of work on a pool of threads that may be busy.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

namespace apex {

// Calls work(i, following) once for every i in [0, count), on the calling thread and on up to `helpers` others; the
// same thread goes on with `following`, unless that is `count` or more. The caller takes pieces like everybody else and
// at the end waits only for pieces that others have begun: a pool too busy to start the helpers costs time, never a
// deadlock. Helpers that start late find nothing left and touch nothing but `Pieces`.
class Pieces {
 public:
  template <class Schedule>
  static void Run(int count, int helpers, std::function<void(int, int)> work, Schedule&& schedule) {
    if (helpers <= 0 || count <= 1) {
      for (int i = 0; i < count; ++i) work(i, i + 1);
      return;
    }
    auto pieces = std::make_shared<Pieces>(count, std::move(work));
    for (int i = 0; i < helpers && i < count - 1; ++i) schedule([pieces] { pieces->TakeAll(); });
    pieces->TakeAll();
    pieces->Wait();
  }

  Pieces(int count, std::function<void(int, int)> work) : count_(count), work_(std::move(work)) {}

 private:
  void TakeAll() {
    int following = next_.fetch_add(1, std::memory_order_relaxed);
    while (following < count_) {
      const int i = following;
      following = next_.fetch_add(1, std::memory_order_relaxed);
      work_(i, following);
      if (finished_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
        std::lock_guard<std::mutex> lock(mutex_);
        all_finished_.notify_one();
      }
    }
  }

  void Wait() {
    // Pieces end within microseconds of each other; sleeping straight away would cost more than that.
    for (int spin = 0; spin < kSpins; ++spin) {
      if (finished_.load(std::memory_order_acquire) == count_) return;
      Pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    all_finished_.wait(lock, [this] { return finished_.load(std::memory_order_acquire) == count_; });
  }

  static void Pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  static constexpr int kSpins = 2000;
  const int count_;
  const std::function<void(int, int)> work_;
  std::atomic<int> next_{0};
  std::atomic<int> finished_{0};
  std::mutex mutex_;
  std::condition_variable all_finished_;
};

}  // namespace apex
