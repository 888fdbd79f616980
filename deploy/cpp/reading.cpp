#include "reading.h"

#include <fstream>
#include <iterator>

namespace small_detector {

std::string read_text(const std::string& path, const std::string& remedy) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw Error(path + " cannot be opened; " + remedy);
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace small_detector
