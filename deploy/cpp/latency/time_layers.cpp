// time_layers FOLDER TABLE: times the layers that FOLDER lists on this device, and writes the latency table.

#include <cpu.h>
#include <platform.h>
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "error.h"
#include "json.h"
#include "latency/layer_list.h"
#include "latency/measure.h"
#include "latency/rescale.h"
#include "program.h"

namespace {

using small_detector::Error;

constexpr char kUsage[] =
    "usage: time_layers FOLDER TABLE [--machine NAME] [--powersave 0|1|2] [--rescale]\n"
    "FOLDER is one that prune.py --latency-layers wrote; TABLE is written, for its --latency-table.\n"
    "--rescale times the reference layers alone and brings a TABLE of before to the speed of now.\n"
    "NAME is what the table says it was measured on; 1 takes the small cores, 2 the big ones.\n";

struct Arguments {
    std::vector<std::string> paths;  // the folder, and the table
    std::string machine;
    int powersave = 0;
    bool is_rescaling = false;
};

Arguments parse(const std::vector<std::string>& words) {
    Arguments parsed;
    for (std::size_t index = 0; index < words.size(); ++index) {
        const std::string& word = words[index];
        if (word.rfind("--", 0) != 0) {
            parsed.paths.push_back(word);
            continue;
        }
        if (word == "--rescale") {
            parsed.is_rescaling = true;
            continue;
        }
        if ((word != "--machine" && word != "--powersave") || index + 1 == words.size()) {
            throw Error(word + ": unknown, or without its value; see time_layers --help");
        }
        const std::string& value = words[++index];
        if (word == "--machine") {
            parsed.machine = value;
        } else if (value == "0" || value == "1" || value == "2") {
            parsed.powersave = value.front() - '0';
        } else {
            throw Error("--powersave " + value + ": expected 0, 1 or 2");
        }
    }
    if (parsed.paths.size() != 2) {
        throw Error("expected a folder and a table to write; see time_layers --help");
    }
    if (parsed.is_rescaling && !parsed.machine.empty()) {
        throw Error("--rescale keeps the machine that the table names; leave --machine out");
    }
    return parsed;
}

// Returns the text after the colon in a line of /proc/cpuinfo; empty if there is none.
std::string cpu_fact(const std::string& name) {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const std::size_t colon = line.find(':');
        const std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1);
        const std::size_t start = colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
        if (key == name && start != std::string::npos) {
            return line.substr(start, line.find_last_not_of(" \t\r") + 1 - start);
        }
    }
    return "";
}

// Returns the name of the CPU or of the board, the same as machine_name in deploy/latency/measure.py.
std::string machine_name() {
    for (const char* name : {"model name", "Hardware", "Model"}) {
        if (std::string fact = cpu_fact(name); !fact.empty()) {
            return fact;
        }
    }
    utsname names{};
    return uname(&names) == 0 ? names.machine : "unknown";
}

// Shows how far it is, and the time left.
class Reporter {
  public:
    void operator()(std::size_t done, std::size_t total) const {
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
        const double left = spent.count() / static_cast<double>(done) * static_cast<double>(total - done);
        std::cerr << "timing layers " << done << "/" << total << ", " << std::fixed << std::setprecision(0) << left
                  << " s left" << std::endl;
    }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Writes the file beside its place and moves it there, so that it is whole or absent.
class TableFile {
  public:
    // Throws Error if it cannot be written, before anything is measured.
    explicit TableFile(const std::string& path) : path_(path), temporary_(path + ".tmp"), file_(temporary_) {
        check(file_.is_open());
    }

    ~TableFile() { std::remove(temporary_.c_str()); }
    TableFile(const TableFile&) = delete;
    TableFile& operator=(const TableFile&) = delete;

    void write(const std::string& text) {
        file_ << text << "\n";
        file_.close();
        check(!file_.fail() && std::rename(temporary_.c_str(), path_.c_str()) == 0);
    }

  private:
    void check(bool is_good) const {
        if (!is_good) {
            throw Error(path_ + " cannot be written; check the folder and the space");
        }
    }

    std::string path_;
    std::string temporary_;
    std::ofstream file_;
};

std::string measured(const small_detector::LayerList& list, const Arguments& arguments) {
    const small_detector::Times times = small_detector::measure(list, arguments.paths[0], Reporter());
    std::cerr << "whole networks:" << std::defaultfloat << std::setprecision(6);
    for (const double ms : times.networks) {
        std::cerr << " " << ms;
    }
    std::cerr << " ms" << std::endl;
    const std::string machine = arguments.machine.empty() ? machine_name() : arguments.machine;
    return small_detector::json_text(small_detector::table_of(list, times, NCNN_VERSION_STRING, machine));
}

std::string at_the_speed_of_now(const small_detector::LayerList& list, const small_detector::JsonValue& table) {
    const double factor = small_detector::time_reference(list) / small_detector::reference_of(table);
    std::cerr << "reference layers took " << small_detector::reference_of(table) << " ms, now " << std::fixed
              << std::setprecision(3) << factor << " times as long" << std::endl;
    return small_detector::json_text(small_detector::rescaled(table, factor));
}

void run(const Arguments& arguments) {
    const std::string& path = arguments.paths[1];
    const small_detector::LayerList list = small_detector::read_layer_list(arguments.paths[0]);
    small_detector::JsonValue table;
    if (arguments.is_rescaling) {
        table = small_detector::read_table(path, list, NCNN_VERSION_STRING);
    }
    TableFile file(path);
    if (arguments.powersave > 0) {
        ncnn::set_cpu_powersave(arguments.powersave);
    }
    file.write(arguments.is_rescaling ? at_the_speed_of_now(list, table) : measured(list, arguments));
    std::cout << path << std::endl;
}

}  // namespace

int main(int count, char** values) {
    const std::vector<std::string> words(values + 1, values + count);
    return small_detector::run_program("time_layers", kUsage, words, [](const auto& given) { run(parse(given)); });
}
