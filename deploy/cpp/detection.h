// The one public result.
#pragma once

namespace small_detector {

// A box in pixels of the original picture.
struct Detection {
    float x1;
    float y1;
    float x2;
    float y2;
    float score;   // objectness times class, 0 to 1
    int class_id;  // index of Metadata::names
};

}  // namespace small_detector
