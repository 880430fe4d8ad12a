"""xmr: image-text retrieval losses, mining and evaluation in JAX."""

__version__ = "0.1.0"
