"""ONNX: export in fp32, fp16 and int8, with or without NMS in the graph, and the runtime."""
