// How a JPEG must be turned: phones store pictures as the sensor lies and say so in EXIF.
#pragma once

#include <vector>

namespace small_detector {

// The EXIF orientation of a JPEG file's bytes, 1 (upright) to 8; 1 when there is none.
int exif_orientation(const std::vector<unsigned char>& jpeg);

}  // namespace small_detector
