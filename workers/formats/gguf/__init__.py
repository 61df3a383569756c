"""A Step-3.5 model in one GGUF file: names, types, configuration, tensors."""
