"""Other people's files: PyTorch, safetensors, the authors' checkpoints."""
