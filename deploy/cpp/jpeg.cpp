#include "jpeg.h"

#include <csetjmp>
#include <cstdio>  // jpeglib.h needs it before itself

#include <jpeglib.h>

namespace small_detector {
namespace {

// libjpeg reports an error by calling a function that must not return.
struct ErrorExit {
    jpeg_error_mgr manager;  // first, so that a pointer to it points to the whole struct
    std::jmp_buf target;
};

void leave(j_common_ptr state) {
    std::longjmp(reinterpret_cast<ErrorExit*>(state->err)->target, 1);
}

void say_nothing(j_common_ptr) {}

// Frees libjpeg's memory.
struct Decompressor {
    Decompressor() { jpeg_create_decompress(&state); }
    ~Decompressor() { jpeg_destroy_decompress(&state); }
    Decompressor(const Decompressor&) = delete;
    Decompressor& operator=(const Decompressor&) = delete;

    jpeg_decompress_struct state{};
};

// After setjmp no object is created that a jump would have to destroy.
bool read_rows(jpeg_decompress_struct& state, ErrorExit& error, const std::vector<unsigned char>& bytes,
               Image& image) {
    if (setjmp(error.target) != 0) {
        return false;
    }
    jpeg_mem_src(&state, bytes.data(), bytes.size());
    jpeg_read_header(&state, TRUE);
    state.out_color_space = JCS_RGB;
    jpeg_start_decompress(&state);
    image = Image(static_cast<int>(state.output_width), static_cast<int>(state.output_height));
    while (state.output_scanline < state.output_height) {
        JSAMPROW row =
            image.rgb.data() + 3 * static_cast<std::size_t>(state.output_width) * state.output_scanline;
        jpeg_read_scanlines(&state, &row, 1);
    }
    jpeg_finish_decompress(&state);
    return true;
}

}  // namespace

Image decode_jpeg(const std::vector<unsigned char>& bytes) {
    ErrorExit error{};
    Decompressor decompressor;
    decompressor.state.err = jpeg_std_error(&error.manager);
    error.manager.error_exit = leave;
    error.manager.output_message = say_nothing;
    Image image;
    return read_rows(decompressor.state, error, bytes, image) ? image : Image();
}

}  // namespace small_detector
