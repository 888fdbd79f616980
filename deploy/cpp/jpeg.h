// JPEG decoding by libjpeg, which OpenCV uses; built only if libjpeg is found.
#pragma once

#include <vector>

#include "image.h"

namespace small_detector {

// Decodes the image without rotating it; returns an empty one if libjpeg cannot read it.
Image decode_jpeg(const std::vector<unsigned char>& bytes);

}  // namespace small_detector
