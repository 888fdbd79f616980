#include "exif.h"

#include <algorithm>
#include <cstddef>
#include <string>

namespace small_detector {
namespace {

constexpr unsigned kStartOfScan = 0xDA;
constexpr unsigned kApp1 = 0xE1;
constexpr unsigned kOrientation = 0x0112;
const std::string kExifMark("Exif\0\0", 6);

// Part of a file, read in either byte order; bytes beyond its end are 0.
class Bytes {
  public:
    Bytes(const unsigned char* data, std::size_t size, bool is_little)
        : data_(data), size_(size), is_little_(is_little) {}

    unsigned byte(std::size_t at) const { return at < size_ ? data_[at] : 0U; }

    unsigned two(std::size_t at) const {
        return is_little_ ? byte(at) | byte(at + 1) << 8U : byte(at) << 8U | byte(at + 1);
    }

    unsigned four(std::size_t at) const {
        return is_little_ ? two(at) | two(at + 2) << 16U : two(at) << 16U | two(at + 2);
    }

  private:
    const unsigned char* data_;
    std::size_t size_;
    bool is_little_;
};

// Reads the orientation from the first directory of a TIFF block, the content of an EXIF segment.
int tiff_orientation(const unsigned char* data, std::size_t size) {
    const Bytes tiff(data, size, size > 0 && data[0] == 'I');
    const std::size_t directory = tiff.four(4);
    const std::size_t num_entries = tiff.two(directory);
    for (std::size_t index = 0; index < num_entries; ++index) {
        const std::size_t entry = directory + 2 + 12 * index;
        const unsigned value = tiff.two(entry + 8);
        if (tiff.two(entry) == kOrientation && value >= 1 && value <= 8) {
            return static_cast<int>(value);
        }
    }
    return 1;
}

}  // namespace

int exif_orientation(const std::vector<unsigned char>& jpeg) {
    const Bytes file(jpeg.data(), jpeg.size(), false);
    if (file.two(0) != 0xFFD8U) {
        return 1;
    }
    std::size_t at = 2;
    while (at + 4 <= jpeg.size() && file.byte(at) == 0xFFU && file.byte(at + 1) != kStartOfScan) {
        const std::size_t begin = at + 4;
        const std::size_t end = std::min<std::size_t>(at + 2 + file.two(at + 2), jpeg.size());
        const bool is_exif =
            file.byte(at + 1) == kApp1 && end >= begin + kExifMark.size() &&
            std::equal(kExifMark.begin(), kExifMark.end(), jpeg.begin() + static_cast<long>(begin));
        if (is_exif) {
            const std::size_t tiff = begin + kExifMark.size();
            return tiff_orientation(jpeg.data() + tiff, end - tiff);
        }
        at = std::max(end, at + 2);
    }
    return 1;
}

}  // namespace small_detector
