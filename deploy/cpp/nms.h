// Non-maximum suppression within each class (utils/nms.py).
#pragma once

#include <vector>

#include "detection.h"

namespace small_detector {

// The boxes kept, best score first: one goes when its overlap (intersection over union) with a better box of
// its class exceeds `iou`. At most `max_det` are kept.
std::vector<Detection> non_max_suppression(std::vector<Detection> candidates, float iou, int max_det);

}  // namespace small_detector
