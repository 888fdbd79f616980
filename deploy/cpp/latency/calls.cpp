#include "latency/calls.h"

#include <datareader.h>
#include <net.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <vector>

#include "arithmetic.h"
#include "error.h"

namespace small_detector {
namespace {

constexpr char kInput[] = "in0";
constexpr char kOutput[] = "out0";
// Output as the next layer would read it, neither unpacked nor converted to fp32.
constexpr int kPacked = 1;
// A network whose output is its input in the layout in which a layer leaves it.
constexpr char kPacking[] = "7767517\n2 2\nInput in0 0 1 in0\nReLU before 1 1 in0 out0\n";

// Tags that say how weights are stored, see deploy/ncnn/bin.py.
constexpr std::uint32_t kFp32Tag = 0;
constexpr std::uint32_t kFp16Tag = 0x01306B47U;
constexpr std::uint32_t kInt8Tag = 0x000D4B38U;
// Spread of random weights, and the scale that turns most of them into int8.
constexpr float kDeviation = 0.05F;
constexpr float kInt8Scale = 127 / (4 * kDeviation);

using NetPointer = std::shared_ptr<ncnn::Net>;

// Returns the random value at a position; a short block repeats, as drawing megabytes would take longer than the
// layer.
float random_value(std::size_t position) {
    static const std::vector<float> block = [] {
        std::mt19937 generator(0);
        std::normal_distribution<float> normal(0, kDeviation);
        std::vector<float> values(4096);
        std::generate(values.begin(), values.end(), [&] { return normal(generator); });
        return values;
    }();
    return block[position % block.size()];
}

// Content of a .bin in memory.
class Bytes : public ncnn::DataReader {
  public:
    template <typename Value>
    void append(Value value) {
        const auto* first = reinterpret_cast<const unsigned char*>(&value);
        bytes_.insert(bytes_.end(), first, first + sizeof(value));
    }

    void append(std::size_t count, float value) {
        for (std::size_t index = 0; index < count; ++index) {
            append(value);
        }
    }

    // Fills up to a multiple of four bytes, as every array of a .bin is.
    void pad() { bytes_.resize((bytes_.size() + 3) / 4 * 4); }

    std::size_t read(void* buffer, std::size_t size) const override {
        const std::size_t count = std::min(size, bytes_.size() - position_);
        if (count > 0) {
            std::memcpy(buffer, bytes_.data() + position_, count);
        }
        position_ += count;
        return count;
    }

    bool is_at_end() const { return position_ == bytes_.size(); }

  private:
    std::vector<unsigned char> bytes_;
    mutable std::size_t position_ = 0;
};

void append_weights(Bytes& bytes, Storage storage, std::size_t count) {
    bytes.append(storage == Storage::kFp32 ? kFp32Tag : storage == Storage::kFp16 ? kFp16Tag : kInt8Tag);
    for (std::size_t index = 0; index < count; ++index) {
        const float value = random_value(index);
        if (storage == Storage::kFp32) {
            bytes.append(value);
        } else if (storage == Storage::kFp16) {
            bytes.append(ncnn::float32_to_float16(value));
        } else {
            bytes.append(static_cast<signed char>(std::clamp(std::round(value * kInt8Scale), -127.0F, 127.0F)));
        }
    }
    bytes.pad();
}

int num_groups(const Layer& layer, int outputs) {
    return layer.group_outputs > 0 ? outputs / layer.group_outputs : 1;
}

Bytes weights_of(const Layer& layer, int inputs, int outputs) {
    Bytes bytes;
    append_weights(bytes, layer.storage, static_cast<std::size_t>(num_weights(layer, inputs, outputs)));
    bytes.append(static_cast<std::size_t>(outputs), 0.0F);  // bias
    if (layer.storage == Storage::kInt8) {
        const int num_scales = layer.group_outputs > 0 ? num_groups(layer, outputs) : outputs;
        bytes.append(static_cast<std::size_t>(num_scales), kInt8Scale);
        bytes.append(1, 127.0F);  // of the input
    }
    return bytes;
}

std::string replaced(std::string text, const std::string& name, long value) {
    for (std::size_t at = text.find(name); at != std::string::npos; at = text.find(name)) {
        text.replace(at, name.size(), std::to_string(value));
    }
    return text;
}

std::string param_of(const Layer& layer, int inputs, int outputs) {
    std::string text = replaced(layer.param, "{outputs}", outputs);
    text = replaced(text, "{weights}", num_weights(layer, inputs, outputs));
    return replaced(text, "{groups}", num_groups(layer, outputs));
}

NetPointer new_net(const LayerList& list) {
    NetPointer net = std::make_shared<ncnn::Net>();
    set_arithmetic(net->opt, list.threads, list.half);
    return net;
}

NetPointer opened(const std::string& param, const Bytes& bytes, const LayerList& list) {
    NetPointer net = new_net(list);
    if (net->load_param_mem(param.c_str()) != 0 || net->load_model(bytes) != 0 || !bytes.is_at_end()) {
        throw Error("this ncnn does not load the layer " + param.substr(param.find("in0\n") + 4));
    }
    return net;
}

// Fills a map with random values, none of them negative.
void fill(ncnn::Mat& map) {
    std::size_t position = 0;
    for (int channel = 0; channel < map.c; ++channel) {
        float* values = map.channel(channel);
        for (int index = 0; index < map.w * map.h; ++index) {
            values[index] = std::abs(random_value(position++));
        }
    }
}

ncnn::Mat input_of(const Layer& layer, int channels) {
    if (!layer.is_linear) {
        ncnn::Mat map(layer.width, layer.height, channels);
        fill(map);
        return map;
    }
    ncnn::Mat rows = layer.height > 1 ? ncnn::Mat(channels, layer.height) : ncnn::Mat(channels);
    fill(rows);
    return rows;
}

ncnn::Mat computed(const ncnn::Net& net, const ncnn::Mat& input, const char* output, int layout) {
    ncnn::Extractor extractor = net.create_extractor();
    ncnn::Mat found;
    if (extractor.input(kInput, input) != 0 || extractor.extract(output, found, layout) != 0) {
        throw Error("this ncnn cannot compute a layer of the list; free memory, or write the list again");
    }
    return found;
}

// Returns the input in the layout in which a layer before this one would leave it.
ncnn::Mat packed(const Layer& layer, const ncnn::Mat& input, const LayerList& list) {
    if (layer.is_linear || layer.is_first) {
        return input;
    }
    const NetPointer net = opened(kPacking, Bytes(), list);
    return computed(*net, input, kOutput, kPacked).clone();  // what the network owns ends with it
}

}  // namespace

long num_weights(const Layer& layer, int inputs, int outputs) {
    return static_cast<long>(outputs) * inputs * layer.kernel_area;
}

Call open_layer(const Layer& layer, int inputs, int outputs, const LayerList& list) {
    const NetPointer net =
        opened(param_of(layer, inputs, outputs), weights_of(layer, inputs, outputs), list);
    const ncnn::Mat input = packed(layer, input_of(layer, inputs * num_groups(layer, outputs)), list);
    return [net, input] { computed(*net, input, kOutput, kPacked); };
}

Call open_network(const std::string& folder, const std::string& name, const LayerList& list) {
    const NetPointer net = new_net(list);
    const std::string param = folder + "/" + name + ".param";
    const std::string bin = folder + "/" + name + ".bin";
    for (const std::string& path : {param, bin}) {
        if (!std::ifstream(path, std::ios::binary)) {
            throw Error(path + " cannot be opened; copy the whole folder");
        }
    }
    if (net->load_param(param.c_str()) != 0 || net->load_model(bin.c_str()) != 0) {
        throw Error(param + " or its .bin is truncated or damaged; copy the whole folder again");
    }
    const auto [channels, height, width] = list.image_chw;
    ncnn::Mat image(width, height, channels);
    fill(image);
    return [net, image] {
        ncnn::Extractor extractor = net->create_extractor();
        extractor.input(kInput, image);
        for (const char* output : net->output_names()) {
            ncnn::Mat found;
            if (extractor.extract(output, found) != 0) {
                throw Error("this ncnn cannot compute a network of the list; free memory, or write the list again");
            }
        }
    };
}

}  // namespace small_detector
