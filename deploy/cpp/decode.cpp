#include "decode.h"

#include <cmath>

namespace small_detector {
namespace {

float sigmoid(float value) {
    return 1.0F / (1.0F + std::exp(-value));
}

float square(float value) {
    return value * value;
}

// The channels of one anchor.
class AnchorMap {
  public:
    AnchorMap(const ncnn::Mat& map, int first_channel) : map_(map), first_(first_channel) {}

    float at(int output, int row, int column) const { return map_.channel(first_ + output).row(row)[column]; }

    int best_class(int num_classes, int row, int column) const {
        int best = 0;
        for (int label = 1; label < num_classes; ++label) {
            if (at(5 + label, row, column) > at(5 + best, row, column)) {
                best = label;
            }
        }
        return best;
    }

  private:
    const ncnn::Mat& map_;
    int first_;
};

// Decodes the box of one cell, without score and class.
Detection box_of(const AnchorMap& raw, const Head::Anchor& anchor, int stride, int row, int column) {
    const auto value = [&](int output) { return sigmoid(raw.at(output, row, column)); };
    const float step = static_cast<float>(stride);
    const float centre_x = (value(0) * 2.0F - 0.5F + static_cast<float>(column)) * step;
    const float centre_y = (value(1) * 2.0F - 0.5F + static_cast<float>(row)) * step;
    const float half_width = square(value(2) * 2.0F) * anchor.width / 2.0F;
    const float half_height = square(value(3) * 2.0F) * anchor.height / 2.0F;
    return {centre_x - half_width,
            centre_y - half_height,
            centre_x + half_width,
            centre_y + half_height,
            0.0F,
            0};
}

}  // namespace

void decode_head(const ncnn::Mat& map, const Head& head, int num_classes, float conf,
                 std::vector<Detection>& found) {
    for (std::size_t index = 0; index < head.anchors.size(); ++index) {
        const AnchorMap raw(map, static_cast<int>(index) * (5 + num_classes));
        for (int row = 0; row < map.h; ++row) {
            for (int column = 0; column < map.w; ++column) {
                const float objectness = sigmoid(raw.at(4, row, column));
                if (!(objectness > conf)) {
                    continue;
                }
                const int label = raw.best_class(num_classes, row, column);
                const float score = objectness * sigmoid(raw.at(5 + label, row, column));
                if (score > conf) {
                    found.push_back(box_of(raw, head.anchors[index], head.stride, row, column));
                    found.back().score = score;
                    found.back().class_id = label;
                }
            }
        }
    }
}

}  // namespace small_detector
