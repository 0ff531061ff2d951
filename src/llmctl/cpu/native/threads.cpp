#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <unistd.h>
#endif

namespace llmctl {
namespace {

StartRegion start_region = nullptr;

struct Work {
    Size count, chunk;
    const std::function<void(Size, Size)>* function;
    std::atomic<long> next{0};

    void take() {
        for (;;) {
            const Size begin = next.fetch_add(chunk, std::memory_order_relaxed);
            if (begin >= count) return;
            (*function)(begin, begin + chunk < count ? begin + chunk : count);
        }
    }
};

void take_work(void* work) { static_cast<Work*>(work)->take(); }

Size process_id() {
#ifdef _WIN32
    return 0;
#else
    return getpid();
#endif
}

// A pool of threads that sleep between calls, used only without an OpenMP runtime.
class Pool {
  public:
    static Pool& of_process() {
        static std::mutex guard;
        static Pool* pool = nullptr;
        const std::lock_guard<std::mutex> lock(guard);
        if (pool == nullptr || pool->process_ != process_id()) pool = new Pool;  // a forked process has no workers
        return *pool;
    }

    void run(Work& work, int threads) {
        std::unique_lock<std::mutex> use(use_, std::try_to_lock);
        if (!use.owns_lock()) {  // another thread of the process uses the workers
            work.take();
            return;
        }
        while (static_cast<int>(workers_.size()) < threads - 1) {
            const int index = static_cast<int>(workers_.size());
            workers_.emplace_back([this, index] { serve(index); });
            workers_.back().detach();
        }
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            wanted_ = threads - 1;
            busy_ = threads - 1;
            ++round_;
        }
        wake_.notify_all();
        work.take();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
        work_ = nullptr;
    }

  private:
    void serve(int index) {
        Size seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return round_ != seen && work_ != nullptr && index < wanted_; });
            seen = round_;
            Work* work = work_;
            lock.unlock();
            work->take();
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    const Size process_ = process_id();
    std::mutex use_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    Work* work_ = nullptr;
    int wanted_ = 0, busy_ = 0;
    Size round_ = 0;
};

struct Memory {
    void* start = nullptr;
    Size bytes = 0;
    ~Memory() { std::free(start); }
};

}  // namespace

void use_region(StartRegion start) { start_region = start; }

void parallel_for(Size count, Size chunk, int threads, const std::function<void(Size, Size)>& function) {
    if (count <= 0) return;
    if (chunk < 1) chunk = 1;
    const Size pieces = (count + chunk - 1) / chunk;
    if (pieces < threads) threads = static_cast<int>(pieces);
    if (threads <= 1) {
        function(0, count);
        return;
    }
    Work work{count, chunk, &function};
    if (start_region != nullptr) {
        start_region(take_work, &work, static_cast<unsigned>(threads), 0);
    } else {
        Pool::of_process().run(work, threads);
    }
}

void* scratch(Slot slot, Size bytes) {
    thread_local Memory memories[kSlots];
    Memory& memory = memories[slot];
    if (memory.bytes < bytes) {
        std::free(memory.start);
        memory.start = std::malloc(static_cast<size_t>(bytes) + 64);
        memory.bytes = memory.start ? bytes : 0;
        if (memory.start == nullptr) std::abort();
    }
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.start) + 63) / 64 * 64);
}

}  // namespace llmctl
