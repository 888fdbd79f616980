"""ncnn: export, int8, and the runtime."""
