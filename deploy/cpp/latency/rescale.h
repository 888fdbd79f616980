// A latency table at the speed that its device has now.
#pragma once

#include <string>

#include "json.h"
#include "latency/layer_list.h"

namespace small_detector {

// Returns the milliseconds of the reference layers, which show whether the device has become faster or slower.
double time_reference(const LayerList& list);

// Reads a table, and checks that it was measured as the list says, with this version of ncnn; throws Error if not.
JsonValue read_table(const std::string& path, const LayerList& list, const std::string& version);

// Returns the time that the reference layers took with a table.
double reference_of(const JsonValue& table);

// Returns a table of `read_table` with all its times multiplied.
JsonValue rescaled(const JsonValue& table, double factor);

}  // namespace small_detector
