// Non-maximum suppression within each class (as in utils/boxes/nms.py).
#pragma once

#include <vector>

#include "detection.h"

namespace small_detector {

// Returns the boxes kept, at most `max_det`, best score first. A box is dropped if its IoU with a better box
// of its class exceeds `iou`.
std::vector<Detection> non_max_suppression(std::vector<Detection> candidates, float iou, int max_det);

}  // namespace small_detector
