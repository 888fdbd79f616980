"""ncnn: export, int8 quantisation, and the runtime."""
