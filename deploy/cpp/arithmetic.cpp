#include "arithmetic.h"

#include <cpu.h>
#include <option.h>

namespace small_detector {

void set_arithmetic(ncnn::Option& option, int threads, bool half) {
    if (threads > 0) {
        option.num_threads = threads;
    }
    option.use_vulkan_compute = false;
    // ncnn turns 16-bit arithmetic on by itself where the CPU has it, so it is turned off unless requested.
    const bool has_fp16 = ncnn::cpu_support_arm_asimdhp() != 0;
    option.use_fp16_packed = option.use_fp16_storage = option.use_fp16_arithmetic = half && has_fp16;
    option.use_bf16_packed = option.use_bf16_storage = half && !has_fp16;
}

}  // namespace small_detector
