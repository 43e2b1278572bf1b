// The tiles of all coordinates, in ranges that threads take.

#ifndef L2LJAX_THREADS_H_
#define L2LJAX_THREADS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace l2ljax {

// The coordinates in ranges of whole tiles, which depend on their number and on the size of a tile:
// sums over a range, and over ranges in their order, are the same whichever thread took which.
struct Ranges {
  // Enough for all threads to end at about the same time; each has sums of its own to clear and add.
  static constexpr int MOST = 32;
  std::int64_t n, size;

  Ranges(std::int64_t n, int least_tiles) : n(n), size((n + MOST - 1) / MOST) {
    size = std::max<std::int64_t>(least_tiles * TILE, (size + TILE - 1) / TILE * TILE);
  }
  int count() const { return int((n + size - 1) / size); }
};

// Calls `work(worker, range, at, count)` for each tile. The calling thread and helpers of XLA's pool
// take a range at a time; helpers are those that begin before all are taken.
template <typename Work>
void for_each_tile(Ranges ranges, int helpers, xla::ffi::ThreadPool pool, const Work &work) {
  struct Shared {
    std::atomic<int> next{0};
    std::mutex mutex;
    std::condition_variable done;
    int running = 0;
    bool over = false;
  };
  auto shared = std::make_shared<Shared>();
  auto run = [ranges, &work](Shared &shared, int worker) {
    for (int range; (range = shared.next++) < ranges.count();) {
      std::int64_t at = range * ranges.size, end = std::min(ranges.n, at + ranges.size);
      for (; at < end; at += TILE)
        work(worker, range, at, int(std::min<std::int64_t>(TILE, end - at)));
    }
  };
  for (int worker = 1; worker <= helpers; ++worker)
    pool.Schedule([shared, worker, run] {
      {
        std::lock_guard<std::mutex> lock(shared->mutex);
        if (shared->over) return;
        ++shared->running;
      }
      run(*shared, worker);
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (--shared->running == 0) shared->done.notify_one();
    });
  run(*shared, 0);
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->over = true;
  shared->done.wait(lock, [&] { return shared->running == 0; });
}

// Threads besides the calling one: of this device's part of the pool, as many as have work.
inline int helpers(xla::ffi::ThreadPool pool, std::int64_t devices, Ranges ranges) {
  std::int64_t threads = pool.num_threads() / devices;
  return int(std::max<std::int64_t>(0, std::min<std::int64_t>(threads, ranges.count()) - 1));
}

}  // namespace l2ljax

#endif  // L2LJAX_THREADS_H_
