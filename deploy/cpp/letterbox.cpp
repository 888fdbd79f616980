#include "letterbox.h"

#include <mat.h>

#include <algorithm>
#include <cmath>

namespace small_detector {
namespace {

constexpr std::uint8_t kGrey = 114;

// Rounds half to even, as Python does; at least 1.
int rounded(double value) {
    return std::max(1, static_cast<int>(std::nearbyint(value)));
}

int next_multiple(int value, int stride) {
    return (value + stride - 1) / stride * stride;
}

}  // namespace

Size letterbox_size(Size original, int img_size, int stride) {
    const double scale = static_cast<double>(img_size) / std::max(original.width, original.height);
    return {next_multiple(rounded(original.width * scale), stride),
            next_multiple(rounded(original.height * scale), stride)};
}

Letterboxed letterbox(const ImageView& image, Size frame) {
    const double scale = std::min(static_cast<double>(frame.height) / image.height,
                                  static_cast<double>(frame.width) / image.width);
    const Size inner{rounded(image.width * scale), rounded(image.height * scale)};
    // An odd pixel of border is added at the right and at the bottom.
    const int left = (frame.width - inner.width) / 2;
    const int top = (frame.height - inner.height) / 2;
    Letterboxed result{Image(frame.width, frame.height, kGrey), scale, left, top};
    std::uint8_t* corner = result.frame.rgb.data() + 3 * (top * frame.width + left);
    if (inner.width == image.width && inner.height == image.height) {
        for (int row = 0; row < inner.height; ++row) {
            std::copy_n(image.rgb + row * image.stride, 3 * inner.width, corner + row * 3 * frame.width);
        }
    } else {
        ncnn::resize_bilinear_c3(image.rgb, image.width, image.height, image.stride, corner, inner.width,
                                 inner.height, 3 * frame.width);
    }
    return result;
}

}  // namespace small_detector
