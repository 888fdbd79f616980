// Orientation of a JPEG: phones store pixels as the sensor reads them, and the orientation in EXIF.
#pragma once

#include <vector>

namespace small_detector {

// Returns the EXIF orientation of a JPEG file's bytes, 1 (upright) to 8; 1 if there is none.
int exif_orientation(const std::vector<unsigned char>& jpeg);

}  // namespace small_detector
