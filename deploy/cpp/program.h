// What the programs of this folder have in common: --help, and mistakes that end in one line.
#pragma once

#include <cstdlib>
#include <functional>
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "error.h"

namespace small_detector {

// Runs a program with the words of its command line, and returns its exit code. For --help alone it prints the usage.
// An Error and a lack of memory are one line on the error stream that begins with the program's name, and code 2.
inline int run_program(const std::string& name, const std::string& usage, const std::vector<std::string>& words,
                       const std::function<void(const std::vector<std::string>&)>& run) {
    if (words == std::vector<std::string>{"--help"}) {
        std::cout << usage;
        return EXIT_SUCCESS;
    }
    try {
        run(words);
    } catch (const Error& error) {
        std::cerr << name << ": " << error.what() << "\n";
        return 2;
    } catch (const std::bad_alloc&) {
        std::cerr << name << ": too little memory; end other programs\n";
        return 2;
    }
    return EXIT_SUCCESS;
}

}  // namespace small_detector
