"""TensorRT: export to engines, built in a child process, and the runtime."""
