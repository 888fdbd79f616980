// The exception of this library.
#pragma once

#include <stdexcept>

namespace small_detector {

// An error that the user can correct. Its message is one line that says what is wrong, what was found, and
// the remedy.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace small_detector
