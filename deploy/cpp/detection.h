// The result of detection.
#pragma once

namespace small_detector {

// A box in pixels of the original image.
struct Detection {
    float x1;
    float y1;
    float x2;
    float y2;
    float score;   // objectness times class probability, 0 to 1
    int class_id;  // index into Metadata::names
};

}  // namespace small_detector
