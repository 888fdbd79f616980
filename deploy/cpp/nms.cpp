#include "nms.h"

#include <algorithm>
#include <cstddef>

namespace small_detector {
namespace {

// Maximum number of candidates, best first; bounds the time when `conf` is near zero.
constexpr std::size_t kMaxCandidates = 30000;

float area(const Detection& box) {
    return (box.x2 - box.x1) * (box.y2 - box.y1);
}

bool is_covered(const Detection& box, const Detection& better, float iou) {
    const float width = std::max(0.0F, std::min(box.x2, better.x2) - std::max(box.x1, better.x1));
    const float height = std::max(0.0F, std::min(box.y2, better.y2) - std::max(box.y1, better.y1));
    const float shared = width * height;
    return shared > iou * (area(box) + area(better) - shared);
}

}  // namespace

std::vector<Detection> non_max_suppression(std::vector<Detection> candidates, float iou, int max_det) {
    std::stable_sort(
        candidates.begin(), candidates.end(),
        [](const Detection& first, const Detection& second) { return first.score > second.score; });
    candidates.resize(std::min(candidates.size(), kMaxCandidates));
    std::vector<Detection> kept;
    for (const Detection& box : candidates) {
        if (kept.size() >= static_cast<std::size_t>(max_det)) {
            break;
        }
        const bool is_free = std::none_of(kept.begin(), kept.end(), [&](const Detection& better) {
            return better.class_id == box.class_id && is_covered(box, better, iou);
        });
        if (is_free) {
            kept.push_back(box);
        }
    }
    return kept;
}

}  // namespace small_detector
