// What an exported folder says of its network (metadata.json, written by deploy/metadata.py).
#pragma once

#include <string>
#include <vector>

namespace small_detector {

// One map of raw outputs.
struct Head {
    struct Anchor {
        float width;   // in pixels
        float height;  // in pixels
    };

    int stride;  // pixels per cell
    std::vector<Anchor> anchors;
};

struct Metadata {
    int num_classes() const { return static_cast<int>(names.size()); }
    int max_stride() const;

    std::vector<std::string> names;  // by class id, UTF-8
    std::vector<Head> heads;
    int width = 0;   // of the input, in pixels
    int height = 0;  // of the input, in pixels
    bool is_dynamic =
        false;  // any multiple of the largest stride will do; the size above is that of the export
};

// Reads the file; Error when it cannot be opened, is cut off, or lacks or contradicts something.
Metadata read_metadata(const std::string& path);

}  // namespace small_detector
