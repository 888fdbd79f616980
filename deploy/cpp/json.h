// The part of JSON (RFC 8259) that is needed to read and write our files, and to write detections.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace small_detector {

// A parsed value. Every accessor throws Error if the value has another type.
class JsonValue {
  public:
    using Array = std::vector<JsonValue>;
    using Object = std::vector<std::pair<std::string, JsonValue>>;
    using Content = std::variant<std::nullptr_t, bool, double, std::string, Array, Object>;

    explicit JsonValue(Content content = nullptr) : content_(std::move(content)) {}

    // Returns the member of that name; throws Error if there is none.
    const JsonValue& at(const std::string& name) const;
    const Array& as_array() const;
    const std::string& as_string() const;
    bool as_bool() const;
    double as_number() const;
    int as_int() const;
    const Content& content() const { return content_; }

  private:
    Content content_;
};

// Parses a JSON text; throws Error that names the byte where the text is damaged.
JsonValue parse_json(const std::string& text);

// Returns a value as text that parses as the same value.
std::string json_text(const JsonValue& value);

// Returns the text in quotes, escaped as JSON requires; UTF-8 is not escaped.
std::string json_quoted(const std::string& text);

}  // namespace small_detector
