#include "image_file.h"

#include <mat.h>
#include <simpleocv.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "error.h"
#include "exif.h"
#ifdef SMALL_DETECTOR_LIBJPEG
#include "jpeg.h"
#endif

namespace small_detector {
namespace {

// Largest distance of the end marker from the end of the file; some writers pad.
constexpr std::size_t kTailBytes = 64;

std::vector<unsigned char> read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw Error("image " + path + " cannot be opened; check the path");
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

bool is_jpeg(const std::vector<unsigned char>& bytes) {
    return bytes.size() > 2 && bytes[0] == 0xFF && bytes[1] == 0xD8;
}

// A decoder shows half the image of a truncated file; only the missing end marker reveals it.
bool is_cut_off(const std::vector<unsigned char>& bytes) {
    std::string marker;
    if (is_jpeg(bytes)) {
        marker = "\xFF\xD9";
    } else if (bytes.size() > 4 && std::string(bytes.begin() + 1, bytes.begin() + 4) == "PNG") {
        marker = "IEND";
    }
    const std::string tail(bytes.end() - static_cast<long>(std::min(bytes.size(), kTailBytes)), bytes.end());
    return tail.find(marker) == std::string::npos;
}

// Converts between OpenCV's BGR and our RGB.
void swap_red_and_blue(std::vector<std::uint8_t>& pixels) {
    for (std::size_t index = 0; index + 2 < pixels.size(); index += 3) {
        std::swap(pixels[index], pixels[index + 2]);
    }
}

// Decodes the image without rotating it; returns an empty one if no decoder can read it.
Image decode(const std::vector<unsigned char>& bytes) {
#ifdef SMALL_DETECTOR_LIBJPEG
    // ncnn's own reader decodes JPEG to pixels that differ from OpenCV's by up to three grey levels.
    if (Image image = is_jpeg(bytes) ? decode_jpeg(bytes) : Image(); !image.rgb.empty()) {
        return image;
    }
#endif
    const cv::Mat decoded = cv::imdecode(bytes, cv::IMREAD_COLOR);
    Image image(decoded.cols, decoded.rows);
    std::copy_n(decoded.data, image.rgb.size(), image.rgb.begin());
    swap_red_and_blue(image.rgb);
    return image;
}

// Rotates an image upright by its EXIF orientation; values from 5 on also swap width and height.
Image upright(const Image& lying, int orientation) {
    Image image = orientation >= 5 ? Image(lying.height, lying.width) : Image(lying.width, lying.height);
    ncnn::kanna_rotate_c3(lying.rgb.data(), lying.width, lying.height, image.rgb.data(), image.width,
                          image.height, orientation);
    return image;
}

}  // namespace

Image read_image(const std::string& path) {
    const std::vector<unsigned char> bytes = read_bytes(path);
    const Image image = is_cut_off(bytes) ? Image() : decode(bytes);
    if (image.rgb.empty()) {
        throw Error("image " + path + " cannot be read: it is not a JPEG, PNG or BMP file, or it is truncated; replace it");
    }
    return upright(image, exif_orientation(bytes));
}

void write_image(const std::string& path, const Image& image) {
    std::vector<std::uint8_t> bgr = image.rgb;
    swap_red_and_blue(bgr);
    if (!cv::imwrite(path, cv::Mat(image.height, image.width, CV_8UC3, bgr.data()))) {
        throw Error("picture " + path +
                    " cannot be written; check the folder, and that it ends in .jpg, .png or .bmp");
    }
}

}  // namespace small_detector
