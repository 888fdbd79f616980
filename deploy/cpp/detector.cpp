#include "detector.h"

#include <cpu.h>
#include <net.h>

#include <algorithm>
#include <fstream>

#include "arithmetic.h"
#include "decode.h"
#include "error.h"
#include "letterbox.h"
#include "nms.h"

namespace small_detector {
namespace {

constexpr char kInput[] = "in0";

std::string output_name(std::size_t level) {
    return "out" + std::to_string(level);
}

void check_options(const DetectorOptions& options, const Metadata& metadata) {
    const auto is_share = [](float value) { return value >= 0.0F && value <= 1.0F; };
    if (!is_share(options.conf) || !is_share(options.iou)) {
        throw Error("conf " + std::to_string(options.conf) + ", iou " + std::to_string(options.iou) +
                    ": expected 0 to 1 for both");
    }
    if (options.max_det < 1 || options.threads < 0 || options.powersave < 0 || options.powersave > 2) {
        throw Error("expected max-det of at least 1, threads of at least 0, powersave 0, 1 or 2");
    }
    const int stride = metadata.max_stride();
    if (options.img_size < 0 || options.img_size % stride != 0) {
        throw Error("img-size " + std::to_string(options.img_size) + ": expected a multiple of the stride " +
                    std::to_string(stride));
    }
    if (!metadata.is_dynamic && options.img_size != 0 &&
        options.img_size != std::max(metadata.width, metadata.height)) {
        throw Error("img-size " + std::to_string(options.img_size) + ": the network takes " +
                    std::to_string(metadata.width) + "x" + std::to_string(metadata.height) +
                    " only; leave the option out");
    }
}

// ncnn's own messages about a missing file name neither the folder nor a remedy.
std::string existing(const std::string& path) {
    if (!std::ifstream(path, std::ios::binary)) {
        throw Error(path + " cannot be opened; check the path, or export the network again");
    }
    return path;
}

void load(ncnn::Net& net, const std::string& folder) {
    const std::string param = existing(folder + "/model.ncnn.param");
    const std::string bin = existing(folder + "/model.ncnn.bin");
    if (net.load_param(param.c_str()) != 0) {
        throw Error(param + " is damaged; export the network again");
    }
    if (net.load_model(bin.c_str()) != 0) {
        throw Error(bin + " is truncated or damaged; export the network again");
    }
}

// Refuses a network whose inputs and outputs differ from those in the metadata.
void check_ends(const ncnn::Net& net, std::size_t num_heads, const std::string& folder) {
    std::vector<std::string> expected;
    for (std::size_t level = 0; level < num_heads; ++level) {
        expected.push_back(output_name(level));
    }
    std::vector<std::string> found(net.output_names().begin(), net.output_names().end());
    std::sort(expected.begin(), expected.end());
    std::sort(found.begin(), found.end());
    const auto& inputs = net.input_names();
    if (inputs.size() != 1 || inputs.front() != std::string(kInput) || found != expected) {
        throw Error(folder +
                    ": model.ncnn.param has other inputs and outputs than metadata.json describes (in0 and " +
                    std::to_string(num_heads) + " heads); export the network again");
    }
}

// Refuses a map whose shape differs from that in the metadata; `where` begins the message.
void check_map(const ncnn::Mat& map, const Head& head, int num_classes, const Image& frame,
               const std::string& where) {
    const int channels = static_cast<int>(head.anchors.size()) * (5 + num_classes);
    if (map.c != channels || map.w != frame.width / head.stride || map.h != frame.height / head.stride) {
        throw Error(where + " is " + std::to_string(map.c) + "x" + std::to_string(map.h) + "x" +
                    std::to_string(map.w) + ", metadata.json expects " + std::to_string(channels) +
                    " channels at stride " + std::to_string(head.stride) +
                    ": it is of another network; export it again");
    }
}

// Converts pixels of the frame to pixels of the image, and clips the box to the image.
void to_picture(Detection& box, const Letterboxed& boxed, const ImageView& image) {
    const float scale = static_cast<float>(boxed.scale);
    const auto moved = [scale](float value, int border, int side) {
        return std::clamp((value - static_cast<float>(border)) / scale, 0.0F, static_cast<float>(side));
    };
    box.x1 = moved(box.x1, boxed.left, image.width);
    box.y1 = moved(box.y1, boxed.top, image.height);
    box.x2 = moved(box.x2, boxed.left, image.width);
    box.y2 = moved(box.y2, boxed.top, image.height);
}

}  // namespace

Detector::Detector(const std::string& folder, const DetectorOptions& options)
    : folder_(folder),
      options_(options),
      metadata_(read_metadata(folder + "/metadata.json")),
      net_(std::make_unique<ncnn::Net>()) {
    check_options(options_, metadata_);
    if (options_.img_size == 0) {
        options_.img_size = std::max(metadata_.width, metadata_.height);
    }
    if (options_.powersave > 0) {
        ncnn::set_cpu_powersave(options_.powersave);  // applies to the whole process
    }
    set_arithmetic(net_->opt, options_.threads, options_.half);
    load(*net_, folder_);
    check_ends(*net_, metadata_.heads.size(), folder_);
}

Detector::~Detector() = default;
Detector::Detector(Detector&&) noexcept = default;
Detector& Detector::operator=(Detector&&) noexcept = default;

std::vector<Detection> Detector::operator()(const ImageView& image) const {
    // The bilinear filter reads a neighbour of every pixel, so each side needs at least two.
    if (image.rgb == nullptr || image.width < 2 || image.height < 2 || image.stride < 3 * image.width) {
        throw Error("picture of " + std::to_string(image.width) + "x" + std::to_string(image.height) +
                    " pixels: expected at least 2x2, and rows of 3 bytes per pixel");
    }
    const Size fixed{metadata_.width, metadata_.height};
    const Size least = letterbox_size({image.width, image.height}, options_.img_size, metadata_.max_stride());
    const Letterboxed boxed = letterbox(image, metadata_.is_dynamic ? least : fixed);
    const std::vector<ncnn::Mat> maps = run(boxed.frame);
    std::vector<Detection> candidates;
    for (std::size_t level = 0; level < maps.size(); ++level) {
        decode_head(maps[level], metadata_.heads[level], metadata_.num_classes(), options_.conf, candidates);
    }
    std::vector<Detection> found = non_max_suppression(std::move(candidates), options_.iou, options_.max_det);
    for (Detection& box : found) {
        to_picture(box, boxed, image);
    }
    return found;
}

std::vector<ncnn::Mat> Detector::run(const Image& frame) const {
    const float scale[3] = {1 / 255.0F, 1 / 255.0F, 1 / 255.0F};
    ncnn::Mat input =
        ncnn::Mat::from_pixels(frame.rgb.data(), ncnn::Mat::PIXEL_RGB, frame.width, frame.height);
    input.substract_mean_normalize(nullptr, scale);
    ncnn::Extractor extractor = net_->create_extractor();
    extractor.input(kInput, input);
    std::vector<ncnn::Mat> maps(metadata_.heads.size());
    for (std::size_t level = 0; level < maps.size(); ++level) {
        const std::string name = output_name(level);
        if (extractor.extract(name.c_str(), maps[level]) != 0) {
            throw Error(folder_ + ": ncnn cannot compute " + name + "; export the network again");
        }
        check_map(maps[level], metadata_.heads[level], metadata_.num_classes(), frame, folder_ + ": " + name);
    }
    return maps;
}

}  // namespace small_detector
