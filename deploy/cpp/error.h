// The one exception of this library.
#pragma once

#include <stdexcept>

namespace small_detector {

// Something a user can put right: one line that names the thing, what was found, and the remedy.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace small_detector
