// Times of all layers of a list, and the latency table that they make.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "json.h"
#include "latency/calls.h"
#include "latency/layer_list.h"

namespace small_detector {

// Milliseconds, each that of the fastest call.
struct Times {
    std::vector<double> entries;   // of each layer at each pair of widths, without the cost of a call
    std::vector<double> networks;  // of each whole network
    double reference = 0;          // of the reference layers together
};

// Called after each group of layers with the number of those that are done, and of all.
using Progress = std::function<void(std::size_t, std::size_t)>;

// Opens layers at all of their widths; those of the list itself are too many to be open at once.
std::vector<Call> open_layers(const std::vector<Layer>& layers, const LayerList& list);

// Times everything that a folder lists. Whole networks and reference layers are called between the layers, all the
// time: a call that other programs leave alone is rarer the longer it takes. Throws Error for a damaged network.
Times measure(const LayerList& list, const std::string& folder, const Progress& progress);

// Returns the table as LatencyTable.load in Python reads it.
JsonValue table_of(const LayerList& list, const Times& times, const std::string& version,
                   const std::string& machine);

}  // namespace small_detector
