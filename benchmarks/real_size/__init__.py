"""The whole runtime at real size: what it reaches of memory and processor, predicted and beside llama.cpp."""
