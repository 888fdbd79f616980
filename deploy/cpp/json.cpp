#include "json.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <locale>
#include <sstream>

#include "error.h"

namespace small_detector {
namespace {

// Limit of nesting, above that of our files, so that damaged ones do not exhaust the stack.
constexpr int kMaxDepth = 32;

// Appends a code point as UTF-8.
void append_utf8(std::string& text, std::uint32_t code) {
    const auto append = [&text](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    const auto tail = [code](int shift) { return 0x80U | (code >> shift & 0x3FU); };
    if (code < 0x80U) {
        append(code);
    } else if (code < 0x800U) {
        append(0xC0U | code >> 6U);
        append(tail(0));
    } else if (code < 0x10000U) {
        append(0xE0U | code >> 12U);
        append(tail(6));
        append(tail(0));
    } else {
        append(0xF0U | code >> 18U);
        append(tail(12));
        append(tail(6));
        append(tail(0));
    }
}

// A recursive-descent parser with one function per type of value.
class Parser {
  public:
    explicit Parser(const std::string& text) : text_(text) {}

    JsonValue document() {
        JsonValue value = parse_value(0);
        skip_blanks();
        if (position_ != text_.size()) {
            fail("something after its end");
        }
        return value;
    }

  private:
    [[noreturn]] void fail(const std::string& finding) const {
        throw Error("not JSON: " + finding + " at byte " + std::to_string(position_));
    }

    // Returns the current character, 0 at the end.
    char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

    void skip_blanks() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') {
            ++position_;
        }
    }

    bool skip(char wanted) {
        skip_blanks();
        const bool is_here = peek() == wanted;
        position_ += is_here ? 1 : 0;
        return is_here;
    }

    void expect(char wanted) {
        if (!skip(wanted)) {
            fail(std::string("no ") + wanted);
        }
    }

    JsonValue parse_value(int depth) {
        if (depth > kMaxDepth) {
            fail("too deep nesting");
        }
        skip_blanks();
        switch (peek()) {
            case '{':
                return parse_object(depth);
            case '[':
                return parse_array(depth);
            case '"':
                return JsonValue(parse_string());
            case 't':
                return parse_word("true", true);
            case 'f':
                return parse_word("false", false);
            case 'n':
                return parse_word("null", nullptr);
            default:
                return parse_number();
        }
    }

    JsonValue parse_object(int depth) {
        JsonValue::Object members;
        expect('{');
        if (skip('}')) {
            return JsonValue(std::move(members));
        }
        do {
            skip_blanks();
            std::string name = parse_string();
            expect(':');
            members.emplace_back(std::move(name), parse_value(depth + 1));
        } while (skip(','));
        expect('}');
        return JsonValue(std::move(members));
    }

    JsonValue parse_array(int depth) {
        JsonValue::Array values;
        expect('[');
        if (skip(']')) {
            return JsonValue(std::move(values));
        }
        do {
            values.push_back(parse_value(depth + 1));
        } while (skip(','));
        expect(']');
        return JsonValue(std::move(values));
    }

    JsonValue parse_word(const std::string& word, JsonValue::Content meaning) {
        if (text_.compare(position_, word.size(), word) != 0) {
            fail("an unknown word");
        }
        position_ += word.size();
        return JsonValue(std::move(meaning));
    }

    JsonValue parse_number() {
        const std::size_t end = text_.find_first_not_of("+-.0123456789eE", position_);
        std::istringstream digits(text_.substr(position_, end - position_));
        digits.imbue(std::locale::classic());  // a decimal point in every locale
        double value = 0;
        if (!(digits >> value) || digits.peek() != std::istringstream::traits_type::eof()) {
            fail("no value");
        }
        position_ = end == std::string::npos ? text_.size() : end;
        return JsonValue(value);
    }

    std::string parse_string() {
        expect('"');
        std::string content;
        while (peek() != '"') {
            if (position_ >= text_.size()) {
                fail("a string without end");
            }
            const char character = text_[position_++];
            if (character == '\\') {
                parse_escape(content);
            } else {
                content.push_back(character);
            }
        }
        ++position_;
        return content;
    }

    void parse_escape(std::string& content) {
        static const std::string letters = "\"\\/bfnrt";
        static const std::string meanings = "\"\\/\b\f\n\r\t";
        const char letter = peek();
        ++position_;
        if (letter == 'u') {
            append_utf8(content, parse_code_point());
            return;
        }
        const std::size_t index = letters.find(letter);
        if (letter == '\0' || index == std::string::npos) {
            fail("an unknown escape");
        }
        content.push_back(meanings[index]);
    }

    // Parses \uXXXX, or two of them for a code point beyond 16 bits.
    std::uint32_t parse_code_point() {
        const std::uint32_t first = parse_hex();
        const bool is_first_half = first >= 0xD800U && first < 0xDC00U;
        if (!is_first_half || text_.compare(position_, 2, "\\u") != 0) {
            return first;
        }
        position_ += 2;
        const std::uint32_t second = parse_hex();
        if (second < 0xDC00U || second >= 0xE000U) {
            fail("half a character");
        }
        return 0x10000U + ((first - 0xD800U) << 10U) + (second - 0xDC00U);
    }

    std::uint32_t parse_hex() {
        const std::string digits = text_.substr(position_, 4);
        if (digits.size() != 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
            fail("no four hexadecimal digits");
        }
        position_ += 4;
        return static_cast<std::uint32_t>(std::stoul(digits, nullptr, 16));
    }

    const std::string& text_;
    std::size_t position_ = 0;
};

template <typename Kind>
const Kind& checked(const JsonValue::Content& content, const char* kind) {
    const Kind* value = std::get_if<Kind>(&content);
    if (value == nullptr) {
        throw Error(std::string("expected ") + kind);
    }
    return *value;
}

}  // namespace

const JsonValue& JsonValue::at(const std::string& name) const {
    for (const auto& [key, value] : checked<Object>(content_, "an object")) {
        if (key == name) {
            return value;
        }
    }
    throw Error("it is missing");
}

const JsonValue::Array& JsonValue::as_array() const {
    return checked<Array>(content_, "a list");
}

const std::string& JsonValue::as_string() const {
    return checked<std::string>(content_, "a text");
}

bool JsonValue::as_bool() const {
    return checked<bool>(content_, "true or false");
}

double JsonValue::as_number() const {
    return checked<double>(content_, "a number");
}

int JsonValue::as_int() const {
    const double value = as_number();
    if (value != std::floor(value) || std::abs(value) > std::numeric_limits<int>::max()) {
        throw Error("expected a whole number");
    }
    return static_cast<int>(value);
}

JsonValue parse_json(const std::string& text) {
    return Parser(text).document();
}

}  // namespace small_detector
