#include "latency/rescale.h"

#include <initializer_list>
#include <numeric>
#include <utility>
#include <variant>

#include "error.h"
#include "latency/fastest.h"
#include "latency/measure.h"
#include "reading.h"

namespace small_detector {
namespace {

// Returns a number, or all numbers of nested lists, multiplied.
JsonValue scaled(const JsonValue& value, double factor) {
    if (std::holds_alternative<double>(value.content())) {
        return JsonValue(factor * value.as_number());
    }
    return JsonValue(list_of<JsonValue>(value, [factor](const JsonValue& item) { return scaled(item, factor); }));
}

// Returns an object with these of its members multiplied.
JsonValue with_scaled(const JsonValue& object, std::initializer_list<const char*> names, double factor) {
    for (const char* name : names) {
        field(object, name, [factor](const JsonValue& value) { return scaled(value, factor); });
    }
    JsonValue::Object members = std::get<JsonValue::Object>(object.content());
    for (auto& [own, value] : members) {
        for (const std::string name : names) {
            value = own == name ? scaled(value, factor) : value;
        }
    }
    return JsonValue(std::move(members));
}

void check_table(const JsonValue& table, const LayerList& list, const std::string& version) {
    if (field(table, "format_version", int_of) != list.format_version) {
        throw Error("another format_version");
    }
    if (json_text(table.at("conditions")) != json_text(list.conditions)) {
        throw Error("precision, threads or image size are not those of the list");
    }
    if (const std::string own = field(table, "version", text_of); own != version) {
        throw Error("it was measured with ncnn " + own + ", and this is " + version);
    }
    if (!(field(table, "reference_ms", number_of) > 0)) {
        throw Error("reference_ms: expected a number above zero");
    }
    rescaled(table, 1);  // throws for times that are no numbers
}

}  // namespace

double time_reference(const LayerList& list) {
    Fastest reference(open_layers(list.reference, list), list.threads);
    reference.run(list.settings.reference_runs);
    const std::vector<double>& ms = reference.milliseconds();
    return std::accumulate(ms.begin(), ms.end(), 0.0);
}

JsonValue read_table(const std::string& path, const LayerList& list, const std::string& version) {
    const std::string text = read_text(path, "measure it first, without --rescale");
    try {
        JsonValue table = parse_json(text);
        check_table(table, list, version);
        return table;
    } catch (const Error& error) {
        throw Error(path + " is no table to rescale: " + error.what() + "; measure it again, without --rescale");
    }
}

double reference_of(const JsonValue& table) {
    return field(table, "reference_ms", number_of);
}

JsonValue rescaled(const JsonValue& table, double factor) {
    JsonValue all = with_scaled(table, {"fixed_ms", "ms_per_value", "reference_ms"}, factor);
    JsonValue::Object members = std::get<JsonValue::Object>(all.content());
    const auto row_of = [factor](const JsonValue& row) { return with_scaled(row, {"ms"}, factor); };
    const auto rows_of = [&row_of](const JsonValue& rows) { return list_of<JsonValue>(rows, row_of); };
    JsonValue::Array rows = field(table, "layers", rows_of);
    for (auto& [name, value] : members) {
        if (name == "layers") {
            value = JsonValue(std::move(rows));
        }
    }
    return JsonValue(std::move(members));
}

}  // namespace small_detector
