// JPEG by libjpeg, the decoder that OpenCV has too; built only where libjpeg is found.
#pragma once

#include <vector>

#include "image.h"

namespace small_detector {

// The picture as it lies in the file; an empty one when libjpeg cannot read it.
Image decode_jpeg(const std::vector<unsigned char>& bytes);

}  // namespace small_detector
