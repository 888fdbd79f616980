// How ncnn computes.
#pragma once

namespace ncnn {
class Option;
}

namespace small_detector {

// Sets the number of threads (0 takes one per big core), and 16-bit arithmetic: fp16 where the processor has it,
// else bf16.
void set_arithmetic(ncnn::Option& option, int threads, bool half);

}  // namespace small_detector
