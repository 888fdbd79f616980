#include "metadata.h"

#include <algorithm>
#include <cstddef>

#include "error.h"
#include "json.h"
#include "reading.h"

namespace small_detector {
namespace {

constexpr char kFormat[] = "_ncnn_model";

std::vector<Head::Anchor> anchors_of(const JsonValue& row) {
    const auto sizes =
        list_of<float>(row, [](const JsonValue& item) { return static_cast<float>(item.as_number()); });
    std::vector<Head::Anchor> anchors;
    for (std::size_t index = 0; index + 1 < sizes.size(); index += 2) {
        anchors.push_back({sizes[index], sizes[index + 1]});
    }
    if (anchors.empty() || sizes.size() % 2 != 0) {
        throw Error("expected rows w, h, w, h, ...");
    }
    return anchors;
}

std::vector<Head> heads_of(const JsonValue& document) {
    const std::vector<int> strides = field(document, "strides", ints_of);
    const auto rows = field(document, "anchors", [](const JsonValue& value) {
        return list_of<std::vector<Head::Anchor>>(value, anchors_of);
    });
    const bool is_positive =
        std::all_of(strides.begin(), strides.end(), [](int stride) { return stride > 0; });
    if (strides.empty() || strides.size() != rows.size() || !is_positive) {
        throw Error("strides: expected one for each row of anchors, all above zero");
    }
    std::vector<Head> heads;
    for (std::size_t level = 0; level < rows.size(); ++level) {
        heads.push_back({strides[level], rows[level]});
    }
    return heads;
}

Metadata metadata_of(const JsonValue& document) {
    if (const std::string format = field(document, "format", text_of); format != kFormat) {
        throw Error("format: got " + format + ", expected " + kFormat);
    }
    Metadata metadata;
    metadata.names =
        field(document, "names", [](const JsonValue& value) { return list_of<std::string>(value, text_of); });
    metadata.heads = heads_of(document);
    metadata.is_dynamic = field(document, "dynamic", [](const JsonValue& value) { return value.as_bool(); });
    if (metadata.names.empty() || metadata.num_classes() != field(document, "num_classes", int_of)) {
        throw Error("names: got " + std::to_string(metadata.names.size()) + ", expected num_classes of them");
    }
    const std::vector<int> image_hw = field(document, "image_hw", ints_of);
    const int stride = metadata.max_stride();
    const auto fits = [stride](int side) { return side > 0 && side % stride == 0; };
    if (image_hw.size() != 2 || !std::all_of(image_hw.begin(), image_hw.end(), fits)) {
        throw Error("image_hw: expected two multiples of the stride " + std::to_string(stride));
    }
    metadata.height = image_hw[0];
    metadata.width = image_hw[1];
    return metadata;
}

}  // namespace

int Metadata::max_stride() const {
    const auto has_less = [](const Head& first, const Head& second) { return first.stride < second.stride; };
    return std::max_element(heads.begin(), heads.end(), has_less)->stride;
}

Metadata read_metadata(const std::string& path) {
    const std::string text = read_text(path, "check the path, or export the network again");
    try {
        return metadata_of(parse_json(text));
    } catch (const Error& error) {
        throw Error(path + ": " + error.what() + "; export the network again");
    }
}

}  // namespace small_detector
