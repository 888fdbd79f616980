// Reading of JSON files whose members are known.
#pragma once

#include <string>
#include <vector>

#include "error.h"
#include "json.h"

namespace small_detector {

// Returns the content of a file; throws Error, which ends with the remedy, if it cannot be opened.
std::string read_text(const std::string& path, const std::string& remedy);

// Reads one member with `read`; an error names the member.
template <typename Read>
auto field(const JsonValue& document, const std::string& name, Read read) {
    try {
        return read(document.at(name));
    } catch (const Error& error) {
        throw Error(name + ": " + error.what());
    }
}

template <typename Value, typename Read>
std::vector<Value> list_of(const JsonValue& value, Read read) {
    std::vector<Value> values;
    for (const JsonValue& item : value.as_array()) {
        values.push_back(read(item));
    }
    return values;
}

inline int int_of(const JsonValue& value) {
    return value.as_int();
}

inline double number_of(const JsonValue& value) {
    return value.as_number();
}

inline std::string text_of(const JsonValue& value) {
    return value.as_string();
}

inline std::vector<int> ints_of(const JsonValue& value) {
    return list_of<int>(value, int_of);
}

}  // namespace small_detector
