// Drawing of boxes on an image.
#pragma once

#include <string>
#include <vector>

#include "detection.h"
#include "image.h"

namespace small_detector {

// Draws a box with class name and score for each detection, one colour per class.
void draw_detections(Image& image, const std::vector<Detection>& found,
                     const std::vector<std::string>& names);

}  // namespace small_detector
