#include "metadata.h"

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iterator>

#include "error.h"
#include "json.h"

namespace small_detector {
namespace {

constexpr char kFormat[] = "_ncnn_model";

std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw Error(path + " cannot be opened; check the path, or export the network again");
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Reads one member with `read`; an error names the member.
template <typename Read>
auto field(const JsonValue& document, const std::string& name, Read read) {
    try {
        return read(document.at(name));
    } catch (const Error& error) {
        throw Error(name + ": " + error.what());
    }
}

template <typename Value, typename Read>
std::vector<Value> list_of(const JsonValue& value, Read read) {
    std::vector<Value> values;
    for (const JsonValue& item : value.as_array()) {
        values.push_back(read(item));
    }
    return values;
}

std::vector<int> ints_of(const JsonValue& value) {
    return list_of<int>(value, [](const JsonValue& item) { return item.as_int(); });
}

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
    const auto text = [](const JsonValue& value) { return value.as_string(); };
    const auto whole = [](const JsonValue& value) { return value.as_int(); };
    if (const std::string format = field(document, "format", text); format != kFormat) {
        throw Error("format: got " + format + ", expected " + kFormat);
    }
    Metadata metadata;
    metadata.names =
        field(document, "names", [&](const JsonValue& value) { return list_of<std::string>(value, text); });
    metadata.heads = heads_of(document);
    metadata.is_dynamic = field(document, "dynamic", [](const JsonValue& value) { return value.as_bool(); });
    if (metadata.names.empty() || metadata.num_classes() != field(document, "num_classes", whole)) {
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
    const std::string text = read_text(path);
    try {
        return metadata_of(parse_json(text));
    } catch (const Error& error) {
        throw Error(path + ": " + error.what() + "; export the network again");
    }
}

}  // namespace small_detector
