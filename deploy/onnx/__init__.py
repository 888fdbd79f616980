"""ONNX: export in fp32, fp16 and int8, with or without suppression inside, and the runtime."""
