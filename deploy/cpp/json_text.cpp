#include <cstdio>
#include <limits>
#include <locale>
#include <sstream>

#include "json.h"

namespace small_detector {
namespace {

// Writes a value of any type; one function per type.
struct Writer {
    std::string operator()(std::nullptr_t) const { return "null"; }
    std::string operator()(bool value) const { return value ? "true" : "false"; }
    std::string operator()(const std::string& value) const { return json_quoted(value); }

    std::string operator()(double value) const {
        std::ostringstream digits;
        digits.imbue(std::locale::classic());
        digits.precision(std::numeric_limits<double>::max_digits10);
        digits << value;
        return digits.str();
    }

    std::string operator()(const JsonValue::Array& values) const {
        std::string items;
        for (const JsonValue& value : values) {
            items += (items.empty() ? "" : ", ") + json_text(value);
        }
        return "[" + items + "]";
    }

    std::string operator()(const JsonValue::Object& members) const {
        std::string items;
        for (const auto& [name, value] : members) {
            items += (items.empty() ? "" : ", ") + json_quoted(name) + ": " + json_text(value);
        }
        return "{" + items + "}";
    }
};

}  // namespace

std::string json_text(const JsonValue& value) {
    return std::visit(Writer{}, value.content());
}

std::string json_quoted(const std::string& text) {
    std::string quoted = "\"";
    for (const char character : text) {
        if (character == '"' || character == '\\') {
            quoted.push_back('\\');
            quoted.push_back(character);
        } else if (static_cast<unsigned char>(character) < 0x20U) {
            char escape[7];
            std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(character));
            quoted += escape;
        } else {
            quoted.push_back(character);
        }
    }
    return quoted + "\"";
}

}  // namespace small_detector
