// The list of layers to time (layers.json, see deploy/latency/layer_list.py).
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "json.h"

namespace small_detector {

// How the weights of a layer are stored.
enum class Storage { kFp32, kFp16, kInt8 };

// A kind of layer, and the widths at which it is timed.
struct Layer {
    JsonValue kind;  // copied into the table

    // Text of a network of one layer; {outputs}, {weights} and {groups} stand for numbers.
    std::string param;
    Storage storage = Storage::kFp32;
    std::vector<int> inputs;   // input channels, ascending; those of one group if the layer has groups
    std::vector<int> outputs;  // output channels, ascending

    bool is_linear = false;
    bool is_first = false;  // whether it reads the image
    int kernel_area = 1;
    int group_outputs = 0;  // output channels of a group; 0 if every output reads every input
    int height = 1;         // of the input map; rows of the input of a linear layer
    int width = 1;
};

// A whole network, whose time shows what its layers leave over.
struct ListedNetwork {
    // A position in the list of all entries (kind by kind, row by row), and a factor.
    using Term = std::pair<std::size_t, double>;

    std::string name;         // of the files name.param and name.bin
    double values = 0;        // that its layers write for one image
    std::vector<Term> terms;  // what its layers add up to
};

// How layers are timed.
struct Settings {
    int at_once = 0;         // layers that are opened at a time, and called in turns
    int runs = 0;            // timed calls of each
    int network_runs = 0;    // timed calls of each whole network
    int reference_runs = 0;  // timed calls of what is timed alone
    double ridge = 0;        // weight of the penalty on the fitted rest, against one network
};

struct LayerList {
    int format_version = 0;
    JsonValue conditions;  // copied into the table
    int threads = 1;
    bool half = false;     // 16-bit arithmetic
    int image_chw[3] = {};  // channels, height and width of the image
    Settings settings;
    std::vector<Layer> layers;
    Layer call;                    // takes next to no time but that of the call
    std::vector<Layer> reference;  // whose times together show the speed of the machine
    std::vector<ListedNetwork> networks;
};

// Reads FOLDER/layers.json; throws Error if it cannot be opened, is damaged or is no such list.
LayerList read_layer_list(const std::string& folder);

}  // namespace small_detector
