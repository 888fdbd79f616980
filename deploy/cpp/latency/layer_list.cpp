#include "latency/layer_list.h"

#include <algorithm>

#include "error.h"
#include "reading.h"

namespace small_detector {
namespace {

constexpr int kFormatVersion = 1;
constexpr char kRemedy[] = "write the folder again with prune.py --latency-layers, and copy all of it";

// Reads a list whose items must all be above zero, of a fixed size if `count` is given.
std::vector<int> positive_ints(const JsonValue& document, const std::string& name, std::size_t count = 0) {
    std::vector<int> values = field(document, name, ints_of);
    const auto is_positive = [](int value) { return value > 0; };
    if (values.empty() || (count != 0 && values.size() != count) ||
        !std::all_of(values.begin(), values.end(), is_positive)) {
        throw Error(name + ": expected whole numbers above zero");
    }
    return values;
}

std::vector<int> widths(const JsonValue& document, const std::string& name) {
    std::vector<int> values = positive_ints(document, name);
    const auto is_wrong = [](int one, int next) { return one >= next; };
    if (std::adjacent_find(values.begin(), values.end(), is_wrong) != values.end()) {
        throw Error(name + ": expected ascending widths");
    }
    return values;
}

Storage storage_of(const JsonValue& value) {
    const std::string& name = value.as_string();
    if (name != "fp32" && name != "fp16" && name != "int8") {
        throw Error("got " + name + ", expected fp32, fp16 or int8");
    }
    return name == "fp32" ? Storage::kFp32 : name == "fp16" ? Storage::kFp16 : Storage::kInt8;
}

// Reads what the weights and the input of a layer depend on.
void read_kind(const JsonValue& kind, Layer& layer) {
    layer.is_linear = field(kind, "kind", text_of) == "linear";
    layer.is_first = field(kind, "end", text_of) == "first";
    const std::vector<int> kernel = positive_ints(kind, "kernel", 2);
    const std::vector<int> input_hw = positive_ints(kind, "input_hw", 2);
    const std::vector<int> group = field(kind, "group", ints_of);
    if (group.size() != 2 || group[1] < 0) {
        throw Error("group: expected two whole numbers");
    }
    layer.kernel_area = kernel[0] * kernel[1];
    layer.group_outputs = group[1];
    layer.height = input_hw[0];
    layer.width = input_hw[1];
}

Layer layer_of(const JsonValue& row) {
    Layer layer;
    layer.kind = row.at("kind");
    field(row, "kind", [&layer](const JsonValue& kind) { read_kind(kind, layer); });
    layer.param = field(row, "param", text_of);
    layer.storage = field(row, "storage", storage_of);
    layer.inputs = widths(row, "inputs");
    layer.outputs = widths(row, "outputs");
    const auto is_split = [&layer](int outputs) { return outputs % layer.group_outputs != 0; };
    if (layer.group_outputs > 0 && std::any_of(layer.outputs.begin(), layer.outputs.end(), is_split)) {
        throw Error("outputs: expected whole groups of " + std::to_string(layer.group_outputs));
    }
    return layer;
}

std::vector<Layer> layers_of(const JsonValue& value) {
    std::vector<Layer> layers = list_of<Layer>(value, layer_of);
    if (layers.empty()) {
        throw Error("it is empty");
    }
    return layers;
}

ListedNetwork network_of(const JsonValue& row, std::size_t num_entries) {
    const auto term_of = [num_entries](const JsonValue& value) {
        const JsonValue::Array& pair = value.as_array();
        if (pair.size() != 2 || pair[0].as_int() < 0 ||
            static_cast<std::size_t>(pair[0].as_int()) >= num_entries) {
            throw Error("expected positions in the list, each with a factor");
        }
        return ListedNetwork::Term(pair[0].as_int(), pair[1].as_number());
    };
    ListedNetwork network;
    network.name = field(row, "name", text_of);
    network.values = field(row, "values", number_of);
    network.terms =
        field(row, "terms", [&](const JsonValue& value) { return list_of<ListedNetwork::Term>(value, term_of); });
    return network;
}

Settings settings_of(const JsonValue& value) {
    Settings settings;
    settings.at_once = field(value, "at_once", int_of);
    settings.runs = field(value, "runs", int_of);
    settings.network_runs = field(value, "network_runs", int_of);
    settings.reference_runs = field(value, "reference_runs", int_of);
    settings.ridge = field(value, "ridge", number_of);
    if (std::min({settings.at_once, settings.runs, settings.network_runs, settings.reference_runs}) < 1 ||
        !(settings.ridge > 0)) {
        throw Error("expected numbers above zero");
    }
    return settings;
}

// Reads runtime, precision, threads and image size.
void read_conditions(const JsonValue& value, LayerList& list) {
    list.conditions = value;
    if (const std::string runtime = field(value, "runtime", text_of); runtime != "ncnn") {
        throw Error("runtime: got " + runtime + ", expected ncnn");
    }
    list.half = field(value, "precision", text_of) == "fp16";
    list.threads = field(value, "threads", int_of);
    const std::vector<int> image_chw = positive_ints(value, "image_chw", 3);
    std::copy(image_chw.begin(), image_chw.end(), list.image_chw);
    if (list.threads < 1) {
        throw Error("threads: expected at least 1");
    }
}

LayerList list_from(const JsonValue& document) {
    LayerList list;
    list.format_version = field(document, "format_version", int_of);
    if (list.format_version != kFormatVersion) {
        throw Error("format_version: got " + std::to_string(list.format_version) + ", expected " +
                    std::to_string(kFormatVersion));
    }
    field(document, "conditions", [&list](const JsonValue& value) { read_conditions(value, list); });
    list.settings = field(document, "settings", settings_of);
    list.layers = field(document, "layers", layers_of);
    list.call = field(document, "call", layer_of);
    list.reference = field(document, "reference", layers_of);
    std::size_t num_entries = 0;
    for (const Layer& layer : list.layers) {
        num_entries += layer.inputs.size() * layer.outputs.size();
    }
    list.networks = field(document, "networks", [num_entries](const JsonValue& value) {
        return list_of<ListedNetwork>(
            value, [num_entries](const JsonValue& row) { return network_of(row, num_entries); });
    });
    if (list.networks.empty()) {
        throw Error("networks: it is empty");
    }
    return list;
}

}  // namespace

LayerList read_layer_list(const std::string& folder) {
    const std::string path = folder + "/layers.json";
    const std::string text = read_text(path, "give the folder that prune.py --latency-layers wrote");
    try {
        return list_from(parse_json(text));
    } catch (const Error& error) {
        throw Error(path + " is no list of layers: " + error.what() + "; " + kRemedy);
    }
}

}  // namespace small_detector
