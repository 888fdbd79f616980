// Image files, read and written with ncnn's small OpenCV substitute. An app that gets its pixels elsewhere
// does not need this file.
#pragma once

#include <string>

#include "image.h"

namespace small_detector {

// Reads JPEG, PNG or BMP as RGB, rotated upright by the EXIF data of a JPEG; transparency is ignored. Throws
// Error if the file is missing, truncated, or not an image.
Image read_image(const std::string& path);

// Writes .jpg, .png or .bmp; throws Error if it cannot.
void write_image(const std::string& path, const Image& image);

}  // namespace small_detector
