// From the raw maps of the network to boxes (the arithmetic of YOLOv5 v5.0, as in utils/decode.py).
#pragma once

#include <mat.h>

#include <vector>

#include "detection.h"
#include "metadata.h"

namespace small_detector {

// Appends the boxes of one map, in pixels of the network's input, whose objectness and score exceed `conf`.
//
// map: channels A * (5 + classes), rows and columns of cells, before the sigmoid. For anchor a, channel
// a * (5 + classes) + i holds x, y, w, h, objectness, then the classes; a box gets its best class only.
void decode_head(const ncnn::Mat& map, const Head& head, int num_classes, float conf,
                 std::vector<Detection>& found);

}  // namespace small_detector
