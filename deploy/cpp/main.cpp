// detect FOLDER IMAGE...: prints one line of JSON per image, and with --draw writes images with boxes.

#include <functional>
#include <iomanip>
#include <iostream>
#include <locale>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "detector.h"
#include "draw.h"
#include "error.h"
#include "image_file.h"
#include "json.h"
#include "program.h"

namespace {

using small_detector::Detection;
using small_detector::Detector;
using small_detector::DetectorOptions;
using small_detector::Error;
using small_detector::Image;

constexpr char kUsage[] =
    "usage: detect FOLDER IMAGE... [--conf 0.25] [--iou 0.45] [--max-det 300] [--img-size N]\n"
    "              [--threads N] [--powersave 0|1|2] [--half] [--draw FOLDER]\n"
    "FOLDER is one that export.py --include ncnn wrote; --draw writes boxes_IMAGE there for each IMAGE.\n";

struct Arguments {
    DetectorOptions options;
    std::string draw_folder;
    std::vector<std::string> paths;  // the network's folder, then the images
};

template <typename Number>
Number number_of(const std::string& flag, const std::string& text) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    Number value{};
    if (!(stream >> value) || stream.peek() != std::istringstream::traits_type::eof()) {
        throw Error(flag + ": got " + text + ", expected a number; see detect --help");
    }
    return value;
}

Arguments parse(const std::vector<std::string>& words) {
    Arguments parsed;
    DetectorOptions& options = parsed.options;
    using Set = std::function<void(const std::string&, const std::string&)>;
    const auto number = [](auto& field) {
        return [&field](const std::string& flag, const std::string& text) {
            field = number_of<std::decay_t<decltype(field)>>(flag, text);
        };
    };
    const std::map<std::string, Set> flags{
        {"--conf", number(options.conf)},
        {"--iou", number(options.iou)},
        {"--max-det", number(options.max_det)},
        {"--img-size", number(options.img_size)},
        {"--threads", number(options.threads)},
        {"--powersave", number(options.powersave)},
        {"--draw", [&](const std::string&, const std::string& text) { parsed.draw_folder = text; }},
    };
    for (std::size_t index = 0; index < words.size(); ++index) {
        const std::string& word = words[index];
        if (word == "--half") {
            options.half = true;
        } else if (word.rfind("--", 0) != 0) {
            parsed.paths.push_back(word);
        } else if (flags.count(word) == 0 || index + 1 == words.size()) {
            throw Error(word + ": unknown, or without its value; see detect --help");
        } else {
            flags.at(word)(word, words[++index]);
        }
    }
    if (parsed.paths.size() < 2) {
        throw Error("expected a folder and at least one image; see detect --help");
    }
    return parsed;
}

// Formats like Detections.to_dict() in Python: pixels to two decimals, scores to five.
std::string json_of(const Detection& box, const std::vector<std::string>& names) {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text << std::fixed << std::setprecision(5);
    text << R"({"name": )" << small_detector::json_quoted(names.at(static_cast<std::size_t>(box.class_id)))
         << R"(, "class_id": )" << box.class_id << R"(, "score": )" << box.score << std::setprecision(2)
         << R"(, "box": {"x1": )" << box.x1 << R"(, "y1": )" << box.y1 << R"(, "x2": )" << box.x2
         << R"(, "y2": )" << box.y2 << "}}";
    return text.str();
}

std::string json_of(const std::string& path, const std::vector<Detection>& found,
                    const std::vector<std::string>& names) {
    std::string list;
    for (const Detection& box : found) {
        list += (list.empty() ? "" : ", ") + json_of(box, names);
    }
    return R"({"image": )" + small_detector::json_quoted(path) + R"(, "detections": [)" + list + "]}";
}

std::string file_name(const std::string& path) {
    return path.substr(path.find_last_of("/\\") + 1);
}

void run(const Arguments& arguments) {
    const Detector detector(arguments.paths.front(), arguments.options);
    const std::vector<std::string>& names = detector.metadata().names;
    for (std::size_t index = 1; index < arguments.paths.size(); ++index) {
        const std::string& path = arguments.paths[index];
        Image image = small_detector::read_image(path);
        const std::vector<Detection> found = detector(image.view());
        std::cout << json_of(path, found, names) << std::endl;  // flushed, for readers that follow the output
        if (!arguments.draw_folder.empty()) {
            small_detector::draw_detections(image, found, names);
            small_detector::write_image(arguments.draw_folder + "/boxes_" + file_name(path), image);
        }
    }
}

}  // namespace

int main(int count, char** values) {
    const std::vector<std::string> words(values + 1, values + count);
    return small_detector::run_program("detect", kUsage, words, [](const auto& given) { run(parse(given)); });
}
