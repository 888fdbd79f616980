// The fastest call of each of several functions.
#pragma once

#include <vector>

#include "latency/calls.h"

namespace small_detector {

// Calls functions in turn, as a network calls its layers, and keeps the fastest call so far of each.
class Fastest {
  public:
    // Times functions that use this number of threads. One thread is timed by the processor time of this process,
    // which leaves out pauses in which other programs ran; several wait for each other, which only the time of day
    // shows.
    Fastest(std::vector<Call> calls, int threads);

    // Calls each function this often, and twice before without timing.
    void run(int runs);

    const std::vector<double>& milliseconds() const { return milliseconds_; }

  private:
    std::vector<Call> calls_;
    int threads_;
    std::vector<double> milliseconds_;
};

}  // namespace small_detector
