// Metadata of an exported network (metadata.json, see deploy/outputs/heads.py).
#pragma once

#include <string>
#include <vector>

namespace small_detector {

// Stride and anchors of one map of raw outputs.
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

    std::vector<std::string> names;  // class names by id, UTF-8
    std::vector<Head> heads;
    int width = 0;   // width of the input, in pixels
    int height = 0;  // height of the input, in pixels
    bool is_dynamic =
        false;  // true if any multiple of the largest stride works; the size above is then the traced one
};

// Reads the file; throws Error if it cannot be opened, is truncated, incomplete or inconsistent.
Metadata read_metadata(const std::string& path);

}  // namespace small_detector
