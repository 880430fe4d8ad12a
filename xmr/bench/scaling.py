"""Growth: time and memory as the batch, the gallery and the training set double, with the fitted
exponent.
"""

import math

from xmr.bench import losses, mining, ranks
from xmr.bench.cases import OURS, Case

# The exponent that the arithmetic has: a batch against itself, a gallery against few queries, a
# training set against a batch.
EXPECTED = {"mh B": 2, "imc_l1 B": 2, "ranks, gallery": 1, "mining, rows": 1}
DIM = 256


def cases(*, quick):
  """Returns the cases: four sizes of each kind, the name ending in the size; two with quick."""
  scale, steps = (1 / 16, 2) if quick else (1, 4)
  sizes = [int(scale * 2**i) if scale >= 1 else 2**i / 16 for i in range(steps)]
  found = []
  for kind in EXPECTED:
    for size in sizes:
      if kind.endswith(" B"):
        batch = int(512 * size)
        arguments = {"loss": kind.removesuffix(" B"), "batch": batch, "dim": DIM}
        found.append(Case(f"{kind} {batch}", {OURS: losses.__name__ + ":ours"}, arguments))
      elif kind.startswith("ranks"):
        texts = int(10_000 * size)
        arguments = {"images": int(1600 * scale), "texts": texts, "dim": DIM}
        found.append(Case(f"{kind} {texts}", {OURS: __name__ + ":of_gallery"}, arguments))
      else:
        images = int(3200 * size)
        arguments = {
          "images": images,
          "batch": int(512 * scale),
          "image": DIM,
          "text": DIM,
          "dim": DIM,
        }
        found.append(Case(f"{kind} {images}", {OURS: mining.__name__ + ":ours"}, arguments))
  return found


def of_gallery(*, images, texts, dim):
  """Ranks of a fixed number of queries in a growing gallery."""
  import numpy as np

  from xmr import eval as evaluation

  image, text, _ = ranks.embeddings(max(images, texts // 5), dim)
  query, gallery, positives = image[:images], text[:texts], 5 * np.arange(images) % texts
  return {"run": lambda: len(evaluation.ranks(query, gallery, positives)) and None}


def summary(results):
  """Returns a line per kind: the exponents of time and of memory, fitted over the sizes, and that
  of the arithmetic.
  """
  lines = []
  for kind, expected in EXPECTED.items():
    points = [
      (float(r["name"].rpartition(" ")[2]), r["contenders"][OURS])
      for r in results
      if r["name"].startswith(kind)
    ]
    if len(points) < 2:
      continue
    time = exponent([(size, figures["fastest"]) for size, figures in points])
    # What the compiler plans is exact; a few MB of the resident set are chance.
    memory = exponent(
      [(size, figures["facts"].get("temp_mb", figures["extra_mb"])) for size, figures in points]
    )
    shown = "too little to fit" if memory is None else f"{memory:.2f}"
    lines.append(f"growth of {kind}: time {time:.2f}, memory {shown}; arithmetic {expected}")
  return lines


def exponent(points):
  """Returns the slope of log(value) over log(size) by least squares; None where a value is missing
  or below 1e-6.
  """
  if any(value is None or value < 1e-6 for _, value in points):
    return None
  x, y = ([math.log(point[i]) for point in points] for i in (0, 1))
  mean = sum(x) / len(x)
  return sum((a - mean) * b for a, b in zip(x, y, strict=True)) / sum((a - mean) ** 2 for a in x)
