// Networks, opened so that a call computes them once.
#pragma once

#include <functional>
#include <string>

#include "latency/layer_list.h"

namespace small_detector {

using Call = std::function<void()>;

// Opens a network of one layer with random weights, written in memory. A call neither unpacks its input nor its
// output, as inside a network. Throws Error if ncnn does not load it.
Call open_layer(const Layer& layer, int inputs, int outputs, const LayerList& list);

// Opens FOLDER/name.param and FOLDER/name.bin. Throws Error for a file that is missing or damaged.
Call open_network(const std::string& folder, const std::string& name, const LayerList& list);

// Returns the number of weights of a layer.
long num_weights(const Layer& layer, int inputs, int outputs);

}  // namespace small_detector
