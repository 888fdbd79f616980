// Fit a picture into a frame: scale it evenly, centre it, fill the border with grey.
#pragma once

#include "image.h"

namespace small_detector {

struct Size {
    int width;
    int height;
};

// A picture in its frame: x in the frame = x in the picture * scale + left.
struct Letterboxed {
    Image frame;
    double scale;
    int left;
    int top;
};

// The least frame of multiples of `stride` that holds a picture whose longer side is `img_size`.
Size letterbox_size(Size original, int img_size, int stride);

// Scales with the bilinear filter of ncnn, which differs from OpenCV's by one grey level at most.
Letterboxed letterbox(const ImageView& image, Size frame);

}  // namespace small_detector
