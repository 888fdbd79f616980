#include "draw.h"

#include <mat.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>

namespace small_detector {
namespace {

// Easy to distinguish, and dark enough for white letters.
constexpr std::array<std::array<unsigned, 3>, 8> kColours{{{200, 40, 40},
                                                           {30, 110, 200},
                                                           {30, 140, 60},
                                                           {150, 70, 180},
                                                           {190, 110, 0},
                                                           {0, 130, 140},
                                                           {200, 50, 130},
                                                           {100, 100, 100}}};

// ncnn draws with the bytes of a colour in memory order, lowest byte first.
unsigned pen(const std::array<unsigned, 3>& colour) {
    return colour[0] | colour[1] << 8U | colour[2] << 16U;
}

std::string label_of(const Detection& box, const std::vector<std::string>& names) {
    char score[16];
    std::snprintf(score, sizeof(score), " %.2f", static_cast<double>(box.score));
    return names.at(static_cast<std::size_t>(box.class_id)) + score;
}

}  // namespace

void draw_detections(Image& image, const std::vector<Detection>& found,
                     const std::vector<std::string>& names) {
    const int thickness = std::max(2, (image.width + image.height) / 600);
    const int letter = 4 + 3 * thickness;  // width in pixels; a letter is twice as high
    const auto draw_box = [&](int x, int y, int width, int height, unsigned colour, int line) {
        ncnn::draw_rectangle_c3(image.rgb.data(), image.width, image.height, x, y, width, height, colour,
                                line);
    };
    for (const Detection& box : found) {
        const unsigned colour = pen(kColours[static_cast<std::size_t>(box.class_id) % kColours.size()]);
        const int x = static_cast<int>(std::lround(box.x1));
        const int y = static_cast<int>(std::lround(box.y1));
        draw_box(x, y, static_cast<int>(std::lround(box.x2)) - x, static_cast<int>(std::lround(box.y2)) - y,
                 colour, thickness);
        const std::string label = label_of(box, names);
        int width = 0;
        int height = 0;
        ncnn::get_text_drawing_size(label.c_str(), letter, &width, &height);
        const int top = std::max(0, y - height);
        draw_box(x, top, width, height, colour, -1);
        ncnn::draw_text_c3(image.rgb.data(), image.width, image.height, label.c_str(), x, top, letter,
                           pen({255, 255, 255}));
    }
}

}  // namespace small_detector
