// Picture files, by way of ncnn's small OpenCV substitute. An app that gets its pixels elsewhere needs none
// of this.
#pragma once

#include <string>

#include "image.h"

namespace small_detector {

// Reads JPEG, PNG or BMP as people see it: RGB, turned as the EXIF data of a JPEG say; transparency is
// ignored. Error when the file is missing, no picture, or cut off.
Image read_image(const std::string& path);

// Writes .jpg, .png or .bmp; Error when that cannot be done.
void write_image(const std::string& path, const Image& image);

}  // namespace small_detector
