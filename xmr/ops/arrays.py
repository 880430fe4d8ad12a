"""The two kinds of arrays that public functions take: on the host, or on devices."""

import jax
import numpy as np

Array = np.ndarray | jax.Array
