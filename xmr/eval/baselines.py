"""Scores that need no training: the floor of every table."""

import numpy as np
from jaxtyping import Float32, Float64, Integer, Real
from scipy import linalg

from xmr.errors import UserError
from xmr.ops.unit import unit


def check_raw(image: Real[np.ndarray, "N D"], text: Real[np.ndarray, "T D"]) -> None:
  """Raises UserError where image [N, D] and text [T, D] features do not share a space to be
  compared in as they are.
  """
  if image.shape[1] != text.shape[1]:
    raise UserError(
      f"raw features need one space: image has {image.shape[1]} columns and text {text.shape[1]}"
    )


def fit_cca(
  image: Real[np.ndarray, "N F"],
  text: Real[np.ndarray, "T E"],
  image_of_text: Integer[np.ndarray, " T"],
  *,
  dim: int = 0,
  regularization: float = 1.0,
  power: float = 0.0,
) -> tuple[
  tuple[Float64[np.ndarray, " F"], Float64[np.ndarray, "F dim"]],
  tuple[Float64[np.ndarray, " E"], Float64[np.ndarray, "E dim"]],
]:
  """Linear canonical correlation analysis in closed form, over all pairs of a caption and its
  image.

  With centred x and y of the pairs and C their covariances, C_xx and C_yy regularised by r times
  their mean variance and C_xx = A A', C_yy = B B' by Cholesky:
    A^-1 C_xy B'^-1 = U diag(c) V';  W_x = A'^-1 U diag(c)^power,  W_y = B'^-1 V diag(c)^power.

  Args:
    image, text: features of the training split.
    image_of_text: the image, 0..N-1, of each caption.
    dim: directions that are kept, of the largest correlations; 0 keeps min(F, G).
    regularization: r, in mean variances of each side; power: of the correlations, 0 for plain CCA.

  Returns:
    (image_side, text_side): pairs (mean, projection) for `project`.

  Raises:
    UserError: shapes, dim above min(F, G), or a regularization that is not positive.

  References:
    Hotelling 1936; Vinod 1976 (ridge); Gong et al., IJCV 2014 (weights by powers of the
    correlations).
  """
  image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
  image_of_text = np.asarray(image_of_text)
  most = min(image.shape[1], text.shape[1])
  if not 0 <= dim <= most:
    raise UserError(f"dim is {dim}; expected 1 to {most}, or 0 for {most}")
  if not regularization > 0:
    raise UserError(
      f"regularization is {regularization}; expected a positive number of mean variances"
    )
  pairs = np.bincount(image_of_text, minlength=len(image))[:, None]
  image_mean, text_mean = (pairs * image).sum(axis=0) / len(text), text.mean(axis=0)
  x, y = image - image_mean, text - text_mean
  per_image = np.zeros((len(image), text.shape[1]))
  np.add.at(per_image, image_of_text, y)
  root_x = _root(x.T @ (pairs * x) / len(text), regularization)
  root_y = _root(y.T @ y / len(text), regularization)
  across = linalg.solve_triangular(root_x, x.T @ per_image / len(text), lower=True)
  across = linalg.solve_triangular(root_y, across.T, lower=True).T
  left, correlation, right = np.linalg.svd(across, full_matrices=False)
  kept = slice(dim or most)
  weight = correlation[kept] ** power
  return (
    (image_mean, linalg.solve_triangular(root_x.T, left[:, kept]) * weight),
    (text_mean, linalg.solve_triangular(root_y.T, right[kept].T) * weight),
  )


def project(
  features: Real[np.ndarray, "M F"],
  side: tuple[Float64[np.ndarray, " F"], Float64[np.ndarray, "F dim"]],
) -> Float32[np.ndarray, "M dim"]:
  """Returns unit embeddings of features by a side (mean, projection) of `fit_cca`."""
  mean, projection = side
  if features.shape[1] != len(mean):
    raise UserError(
      f"features have {features.shape[1]} columns; the training features have {len(mean)}"
    )
  embedding = (np.asarray(features, np.float32) - mean.astype(np.float32)) @ projection.astype(
    np.float32
  )
  return unit(embedding)


def _root(covariance, regularization):
  """The lower triangular root of a regularised covariance."""
  variance = np.trace(covariance) / len(covariance)
  if not variance > 0:
    raise UserError("the training features do not vary; CCA needs more than one different pair")
  return np.linalg.cholesky(covariance + regularization * variance * np.eye(len(covariance)))
