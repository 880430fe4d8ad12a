"""Position embeddings of a grid of patches, resized for images of another size."""

import math

import jax.numpy as jnp
import numpy as np


def cubic_matrix(inputs, outputs, *, antialias):
  """Weights of cubic interpolation along one axis: result = matrix @ values.

  Output o lies at (o + 1/2) inputs / outputs - 1/2 among the inputs. Without antialias, a = -0.75
  and the four nearest inputs count; inputs beyond the border repeat it. With antialias, a = -0.5,
  and a reduction widens the window by its factor.

  Args:
    inputs, outputs: numbers of values, 1 or more.
    antialias: False for CLIP, SigLIP and DINOv2; True for DINOv2 with registers and open_clip.
  Returns:
    [outputs, inputs] float32, rows sum to 1.
  References:
    Keys, Cubic convolution interpolation, 1981; torch.nn.functional.interpolate(mode="bicubic",
    align_corners=False).
  """
  a = -0.5 if antialias else -0.75

  def cubic(x):
    x = abs(x)
    if x < 1:
      return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0

  matrix = np.zeros((outputs, inputs))
  ratio = inputs / outputs
  wide = max(ratio, 1.0) if antialias else 1.0
  for row in range(outputs):
    centre = (row + 0.5) * ratio - 0.5
    for index in range(math.ceil(centre - 2 * wide), math.floor(centre + 2 * wide) + 1):
      if antialias and not 0 <= index < inputs:
        continue
      matrix[row, min(max(index, 0), inputs - 1)] += cubic((index - centre) / wide)
  return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def resized(positions, height, width, *, antialias):
  """Position embeddings of a square grid for a grid of another size.

  Args:
    positions: [S * S, W] float32, rows of the grid in order.
    height, width: of the wanted grid.
    antialias: see cubic_matrix.
  Returns:
    [height * width, W] float32; the input itself if the size is the same.
  """
  side = math.isqrt(len(positions))
  if (height, width) == (side, side):
    return positions
  down = cubic_matrix(side, height, antialias=antialias)
  across = cubic_matrix(side, width, antialias=antialias)
  grid = positions.reshape(side, side, -1)
  return jnp.einsum("hs,wt,std->hwd", down, across, grid).reshape(height * width, -1)
