// Just enough JSON (RFC 8259) to read metadata.json and to write detections.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace small_detector {

// A value as it was read. Every accessor throws Error when the value is of another kind.
class JsonValue {
  public:
    using Array = std::vector<JsonValue>;
    using Object = std::vector<std::pair<std::string, JsonValue>>;
    using Content = std::variant<std::nullptr_t, bool, double, std::string, Array, Object>;

    explicit JsonValue(Content content = nullptr) : content_(std::move(content)) {}

    // The member of that name; Error if there is none.
    const JsonValue& at(const std::string& name) const;
    const Array& as_array() const;
    const std::string& as_string() const;
    bool as_bool() const;
    double as_number() const;
    int as_int() const;

  private:
    Content content_;
};

// Reads one JSON text; Error says at which byte it is damaged.
JsonValue parse_json(const std::string& text);

// The text in quotes, with everything escaped that JSON wants escaped. UTF-8 stays as it is.
std::string json_quoted(const std::string& text);

}  // namespace small_detector
