#include "latency/fastest.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <limits>
#include <utility>

namespace small_detector {
namespace {

constexpr int kWarmUp = 2;

double milliseconds_now(int threads) {
#ifdef CLOCK_PROCESS_CPUTIME_ID
    if (threads == 1) {
        std::timespec time{};
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
        return 1e3 * static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_nsec);
    }
#endif
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(now).count();
}

}  // namespace

Fastest::Fastest(std::vector<Call> calls, int threads)
    : calls_(std::move(calls)),
      threads_(threads),
      milliseconds_(calls_.size(), std::numeric_limits<double>::infinity()) {}

void Fastest::run(int runs) {
    for (int turn = 0; turn < kWarmUp + runs; ++turn) {
        for (std::size_t index = 0; index < calls_.size(); ++index) {
            const double start = milliseconds_now(threads_);
            calls_[index]();
            const double took = milliseconds_now(threads_) - start;
            if (turn >= kWarmUp) {
                milliseconds_[index] = std::min(milliseconds_[index], took);
            }
        }
    }
}

}  // namespace small_detector
