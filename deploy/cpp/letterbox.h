// Letterboxing: scale an image to fit a frame, keep its aspect ratio, centre it, fill the border with grey.
#pragma once

#include "image.h"

namespace small_detector {

struct Size {
    int width;
    int height;
};

// An image in its frame: x in the frame = x in the image * scale + left.
struct Letterboxed {
    Image frame;
    double scale;
    int left;
    int top;
};

// Returns the smallest frame, with sides that are multiples of `stride`, for an image scaled to a longer side
// of `img_size`.
Size letterbox_size(Size original, int img_size, int stride);

// Scales with ncnn's bilinear filter, which differs from OpenCV's by at most one grey level.
Letterboxed letterbox(const ImageView& image, Size frame);

}  // namespace small_detector
