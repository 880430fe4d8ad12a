"""Which word matched which region: matrices of token similarities, and pictures of them."""

import math

import numpy as np

from xmr.data.text import encode_all, tokenize
from xmr.encode import encode_batch
from xmr.errors import UserError
from xmr.inspect.plots import INK, RIGHT, WRONG, picture
from xmr.models.dual_encoder import gives_tokens
from xmr.ops.alignment import Tokens

SHADE = 0.75  # of the weakest cell; the strongest is clear
WORDS = 8  # words drawn of a caption


def align(run, image, text, image_mask=None):
  """Similarity of every region of an image with every word of a caption, a_rw of the run's tokens.

  Args:
    run: Run whose encoders give tokens.
    image: [R, F] float, the image's regions as in the feature file.  text: str.
    image_mask: [R] bool, True where there is a region; None is all.
  Returns:
    [R, W] float32, rows as the regions (NaN where there is none), columns as the words.
  Raises:
    UserError: a run without tokens, regions of another shape, a mask that is empty, a caption of no
      known word.
  """
  for side in ("image", "text"):
    encoder = getattr(run.model, f"{side}_encoder")
    if not gives_tokens(encoder):
      raise UserError(
        f"{run.workdir} has no tokens to align: its {side} encoder is {type(encoder).__name__}"
      )
  x = np.asarray(image)
  if x.ndim != 2 or x.dtype.kind != "f":
    raise UserError(
      f"image is {x.dtype} of shape {x.shape}; expected the floats [R, F] of one image's regions"
    )
  mask = np.ones(len(x), bool) if image_mask is None else np.asarray(image_mask, bool)
  if mask.shape != x.shape[:1] or not mask.any():
    raise UserError(
      f"image_mask has shape {mask.shape} and {int(mask.sum())} regions; expected "
      f"{x.shape[:1]} with at least one"
    )
  words = tokenize(text)
  if not any(word in run.vocabulary for word in words):
    raise UserError(f"no word of {text!r} is in the vocabulary of {run.workdir}; nothing to align")
  ids, length = encode_all([words], run.vocabulary, length=len(words) + 2)
  regions = run.model.apply(
    run.variables, x[None].astype(np.float32), mask[None], method="image_tokens"
  )
  found = run.model.apply(run.variables, ids, length, method="text_tokens")
  # Without <start> and <end>.
  cells = np.asarray(regions.x[0]) @ np.asarray(found.x[0])[1 : len(words) + 1].T
  return np.where(mask[:, None], cells, np.nan).astype(np.float32)


def tokens(run, items):
  """Returns (Tokens, "image" or "text") of regions [N, R, F] float or of captions, list of str.

  Raises:
    UserError: neither of them, a caption without a word.
  """
  kind = getattr(getattr(items, "dtype", None), "kind", None)
  if kind == "f" and items.ndim == 3:
    side, parts = "image", {"image": np.asarray(items, np.float32)}
  elif isinstance(items, str) or (len(items) and all(isinstance(item, str) for item in items)):
    words = [tokenize(text) for text in ([items] if isinstance(items, str) else items)]
    for index, found in enumerate(words):
      if not found:
        raise UserError(f"text {index} is empty; expected words")
    longest = max(map(len, words)) + 2
    ids, length = encode_all(words, run.vocabulary, length=longest + -longest % 16)
    side, parts = "text", {"text": ids, "text_length": length}
  else:
    raise UserError(
      f"{run.workdir} compares tokens; expected the floats [N, R, F] of regions, or captions"
    )
  count, size, found = len(parts[side]), run.config.eval_batch_size, []
  for begin in range(0, count, size):
    batch = {name: x[begin : begin + size] for name, x in parts.items()}
    found.append(encode_batch(run.variables, batch, model=run.model, side=side, tokens=True))
  return Tokens(
    *(np.concatenate([getattr(x, name) for x in found]) for name in ("x", "mask"))
  ), side


def drawn(run, split, pairs, *, folder=""):
  """Draws images with the regions that each word of a caption matches.

  Each pair is a line: the image, then once per word with its cells shaded, the word under it; the
  region that matches best is clear. Where the regions are no square grid, they are bars.

  Args:
    run: Run.  split: Split of regions.
    pairs: list of (image row, caption row); a caption of the image has a green frame.
    folder: the dataset's folder, see plots.picture.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(1.3 * (WORDS + 1), 1.6 * len(pairs)), dpi=110, facecolor="white")
  axes = figure.subplots(len(pairs), WORDS + 1, squeeze=False)
  for line, (image, caption) in zip(axes, pairs, strict=True):
    mask = None if split.image_mask is None else split.image_mask[image]
    cells = align(run, split.image_features[image], split.texts[caption], mask)
    words, shown = tokenize(split.texts[caption]), picture(split, image, folder=folder)
    for axis in line:
      axis.set_xticks([])
      axis.set_yticks([])
    colour = RIGHT if split.image_of_text[caption] == image else WRONG
    _panel(line[0], shown, None)
    line[0].set_xlabel(split.image_names[image][:18], fontsize=6, color=INK, parse_math=False)
    for spine in line[0].spines.values():
      spine.set_color(colour)
      spine.set_linewidth(2)
    # The words that say most of the image: of best match, in the order of the caption.
    strongest = np.sort(np.argsort(-np.nanmax(cells, axis=0), kind="stable")[:WORDS])
    for axis, w in zip(line[1:], strongest, strict=False):
      _panel(axis, shown, cells[:, w])
      axis.set_xlabel(
        f"{words[w]} {np.nanmax(cells[:, w]):.2f}", fontsize=7, color=INK, parse_math=False
      )
    for axis in line[1 + len(strongest) :]:
      axis.axis("off")
  figure.tight_layout(pad=0.4)
  return figure


def _panel(axis, shown, cells):
  """Draws an image and the shade of its cells, or bars where there is no grid."""
  if cells is None:
    if shown is not None:
      axis.imshow(shown, extent=(0, 1, 0, 1))
    return
  side = math.isqrt(len(cells))
  low, high = np.nanmin(cells), np.nanmax(cells)
  strength = np.nan_to_num((cells - low) / (high - low) if high > low else np.ones_like(cells))
  if side * side != len(cells):
    axis.bar(np.arange(len(cells)), strength, color=INK)
    return
  if shown is not None:
    axis.imshow(shown, extent=(0, 1, 0, 1))
  shade = np.zeros((side, side, 4))
  shade[..., 3] = SHADE * (1 - strength.reshape(side, side))
  axis.imshow(shade, extent=(0, 1, 0, 1), interpolation="nearest")


def hits_and_misses(outcome, image_of_text, found, *, n=3):
  """Pairs to draw: captions whose image came first, and those whose image came latest, with what
  came first instead.

  Args:
    outcome: [T] int, rank of each caption's image.  image_of_text: [T] int.
    found: [T, k] int, images found for each caption.  n: of each kind.
  Returns:
    (hits, misses): lists of (image row, caption row); a miss is followed by its own image.
  """
  order = np.argsort(outcome, kind="stable")
  hits = [(int(image_of_text[t]), int(t)) for t in order[:n] if outcome[t] == 0]
  misses = []
  for t in order[::-1][:n]:
    if outcome[t] > 0:
      misses += [(int(found[t, 0]), int(t)), (int(image_of_text[t]), int(t))]
  return hits, misses
