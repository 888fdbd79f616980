// A detector for ncnn in one object. An app needs only this:
//
//     small_detector::Detector detector("best_ncnn_model");
//     std::vector<small_detector::Detection> found = detector({rgb, width, height, 3 * width});
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "detection.h"
#include "image.h"
#include "metadata.h"

namespace ncnn {
class Mat;
class Net;
}  // namespace ncnn

namespace small_detector {

struct DetectorOptions {
    float conf = 0.25F;  // minimum objectness and minimum score of a detection, 0 to 1
    float iou = 0.45F;   // IoU above which the weaker of two boxes of a class is dropped, 0 to 1
    int max_det = 300;   // maximum number of detections per image
    int img_size = 0;    // longer side of the network's input, in pixels; 0 takes the size of the export
    int threads = 0;     // number of threads; 0 takes one per big core
    int powersave = 0;   // 0 does not select cores, 1 selects the small ones, 2 the big ones
    bool half = false;   // 16-bit arithmetic: fp16 where the processor has it, else bf16
};

class Detector {
  public:
    // Loads model.ncnn.param, model.ncnn.bin and metadata.json from a folder that export.py wrote. Throws
    // Error for a file that is missing, damaged or from another network, and for an option out of range.
    explicit Detector(const std::string& folder, const DetectorOptions& options = {});
    ~Detector();
    Detector(Detector&&) noexcept;
    Detector& operator=(Detector&&) noexcept;

    // Returns the detections of an image, best score first. Several threads may call it at the same time.
    std::vector<Detection> operator()(const ImageView& image) const;

    const Metadata& metadata() const { return metadata_; }

  private:
    std::vector<ncnn::Mat> run(const Image& frame) const;

    std::string folder_;
    DetectorOptions options_;
    Metadata metadata_;
    std::unique_ptr<ncnn::Net> net_;
};

}  // namespace small_detector
