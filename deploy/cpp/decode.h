// Decodes the network's raw maps to boxes (the arithmetic of YOLOv5 v5.0, as in utils/boxes/decode.py).
#pragma once

#include <mat.h>

#include <vector>

#include "detection.h"
#include "metadata.h"

namespace small_detector {

// Appends the boxes of one map, in pixels of the network's input, whose objectness and score exceed `conf`.
//
// map: A * (5 + classes) channels of rows and columns of cells, before the sigmoid. For anchor a and
// i = 0, 1, ..., channel a * (5 + classes) + i contains x, y, w, h, objectness, then the classes. A box
// gets only its best class.
void decode_head(const ncnn::Mat& map, const Head& head, int num_classes, float conf,
                 std::vector<Detection>& found);

}  // namespace small_detector
