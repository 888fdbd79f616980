#include "latency/measure.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "latency/fastest.h"

namespace small_detector {
namespace {

// Most weights of layers that are open at a time, so that a phone has the memory: ncnn needs several times their bytes.
constexpr long kMostWeights = 8'000'000;

// A layer at a pair of widths.
struct Entry {
    const Layer* layer;
    int inputs;
    int outputs;
};

std::vector<Entry> entries_of(const std::vector<Layer>& layers) {
    std::vector<Entry> entries;
    for (const Layer& layer : layers) {
        for (const int inputs : layer.inputs) {
            for (const int outputs : layer.outputs) {
                entries.push_back({&layer, inputs, outputs});
            }
        }
    }
    return entries;
}

// Cuts the list into groups that are open at a time.
std::vector<std::vector<Entry>> groups_of(const std::vector<Entry>& entries, std::size_t at_once) {
    std::vector<std::vector<Entry>> groups;
    long weights = 0;
    for (const Entry& entry : entries) {
        const long own = num_weights(*entry.layer, entry.inputs, entry.outputs);
        if (groups.empty() || groups.back().size() == at_once || weights + own > kMostWeights) {
            groups.emplace_back();
            weights = 0;
        }
        groups.back().push_back(entry);
        weights += own;
    }
    return groups;
}

std::vector<Call> opened(const std::vector<Entry>& entries, const LayerList& list) {
    std::vector<Call> calls;
    for (const Entry& entry : entries) {
        calls.push_back(open_layer(*entry.layer, entry.inputs, entry.outputs, list));
    }
    return calls;
}

JsonValue array_of(const std::vector<double>& values) {
    JsonValue::Array items;
    for (const double value : values) {
        items.emplace_back(value);
    }
    return JsonValue(std::move(items));
}

// Returns the row of one kind of layer, whose times begin at `first`.
JsonValue row_of(const Layer& layer, std::vector<double>::const_iterator first) {
    JsonValue::Array ms;
    for (std::size_t row = 0; row < layer.inputs.size(); ++row) {
        const auto last = first + static_cast<std::ptrdiff_t>(layer.outputs.size());
        ms.push_back(array_of({first, last}));
        first = last;
    }
    JsonValue::Object members = std::get<JsonValue::Object>(layer.kind.content());
    members.emplace_back("inputs", array_of({layer.inputs.begin(), layer.inputs.end()}));
    members.emplace_back("outputs", array_of({layer.outputs.begin(), layer.outputs.end()}));
    members.emplace_back("ms", std::move(ms));
    return JsonValue(std::move(members));
}

// What whole networks take beyond their layers: fixed + per_value * values.
struct Rest {
    double fixed;
    double per_value;
};

// Least squares of relative errors with a small penalty on both parts, as with_rest in deploy/latency/measure.py.
Rest fitted_rest(const LayerList& list, const Times& times) {
    const double count = static_cast<double>(list.networks.size());
    double scale = std::numeric_limits<double>::min();  // of values, so that both unknowns are milliseconds
    for (const ListedNetwork& network : list.networks) {
        scale = std::max(scale, network.values);
    }
    double aa = 0, ab = 0, bb = 0, ac = 0, bc = 0, sum_a = 0, sum_b = 0;
    for (std::size_t index = 0; index < list.networks.size(); ++index) {
        double layers = 0;
        for (const auto& [position, factor] : list.networks[index].terms) {
            layers += factor * times.entries[position];
        }
        const double measured = times.networks[index];
        const double a = 1 / measured;
        const double b = list.networks[index].values / scale / measured;
        const double left = (measured - layers) / measured;
        aa += a * a, ab += a * b, bb += b * b, ac += a * left, bc += b * left;
        sum_a += a, sum_b += b;
    }
    aa += list.settings.ridge * sum_a * sum_a / (count * count);
    bb += list.settings.ridge * sum_b * sum_b / (count * count);
    const double determinant = aa * bb - ab * ab;
    return {(ac * bb - bc * ab) / determinant, (bc * aa - ac * ab) / determinant / scale};
}

}  // namespace

std::vector<Call> open_layers(const std::vector<Layer>& layers, const LayerList& list) {
    return opened(entries_of(layers), list);
}

Times measure(const LayerList& list, const std::string& folder, const Progress& progress) {
    const Settings& settings = list.settings;
    std::vector<Call> calls;
    for (const ListedNetwork& network : list.networks) {
        calls.push_back(open_network(folder, network.name, list));
    }
    for (Call& call : open_layers(list.reference, list)) {
        calls.push_back(std::move(call));
    }
    Fastest beside(std::move(calls), list.threads);
    Fastest call(open_layers({list.call}, list), list.threads);
    call.run(settings.reference_runs);

    Times times;
    const std::vector<Entry> entries = entries_of(list.layers);
    const auto groups = groups_of(entries, static_cast<std::size_t>(settings.at_once));
    const int num_groups = static_cast<int>(groups.size());
    for (const std::vector<Entry>& group : groups) {
        Fastest fastest(opened(group, list), list.threads);
        fastest.run(settings.runs);
        for (const double ms : fastest.milliseconds()) {
            times.entries.push_back(std::max(ms - call.milliseconds().front(), 0.0));
        }
        beside.run((settings.network_runs + num_groups - 1) / num_groups);
        progress(times.entries.size(), entries.size());
    }
    beside.run(settings.network_runs / 3);
    const std::vector<double>& ms = beside.milliseconds();
    const auto first_reference = ms.begin() + static_cast<std::ptrdiff_t>(list.networks.size());
    times.networks.assign(ms.begin(), first_reference);
    times.reference = std::accumulate(first_reference, ms.end(), 0.0);
    return times;
}

JsonValue table_of(const LayerList& list, const Times& times, const std::string& version,
                   const std::string& machine) {
    JsonValue::Array rows;
    auto first = times.entries.begin();
    for (const Layer& layer : list.layers) {
        rows.push_back(row_of(layer, first));
        first += static_cast<std::ptrdiff_t>(layer.inputs.size() * layer.outputs.size());
    }
    const Rest rest = fitted_rest(list, times);
    return JsonValue(JsonValue::Object{
        {"format_version", JsonValue(static_cast<double>(list.format_version))},
        {"conditions", list.conditions},
        {"version", JsonValue(version)},
        {"machine", JsonValue(machine)},
        {"fixed_ms", JsonValue(rest.fixed)},
        {"ms_per_value", JsonValue(rest.per_value)},
        {"reference_ms", JsonValue(times.reference)},
        {"layers", JsonValue(std::move(rows))},
    });
}

}  // namespace small_detector
