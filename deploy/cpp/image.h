// Images in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace small_detector {

// RGB bytes owned by the caller, such as a camera frame.
struct ImageView {
    const std::uint8_t* rgb = nullptr;
    int width = 0;
    int height = 0;
    int stride = 0;  // bytes from one row to the next, at least 3 * width
};

// RGB bytes, row by row without gaps.
struct Image {
    Image() = default;
    Image(int image_width, int image_height, std::uint8_t fill = 0)
        : width(image_width),
          height(image_height),
          rgb(static_cast<std::size_t>(image_width) * static_cast<std::size_t>(image_height) * 3, fill) {}

    ImageView view() const { return {rgb.data(), width, height, 3 * width}; }

    int width = 0;
    int height = 0;
    std::vector<std::uint8_t> rgb;
};

}  // namespace small_detector
