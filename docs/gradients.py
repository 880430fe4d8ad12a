"""Draws docs/gradients.png: where a step downhill moves embeddings under each loss.

  python docs/gradients.py

Three pairs on the circle; images are discs on the inner ring, texts squares on the outer one; a
pair has one colour and a dotted line. An arrow is the negative gradient along the circle, scaled
per loss.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from xmr import losses

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

# The first two pairs are each other's hard negatives; the third is far from both.
IMAGE = np.radians([125, 85, 25])
TEXT = np.radians([95, 112, 45])
LONGEST = 0.55


def rows(angle):
  """Unit rows [B, 2] of angles [B]."""
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def mined(loss, **settings):
  """A loss on given negatives, with the hardest of the other pairs as negatives."""

  def value(image, text):
    scores = jax.lax.stop_gradient(image @ text.T) - 4 * jnp.eye(len(image))
    i, t = jnp.argmax(scores, axis=0), jnp.argmax(scores, axis=1)
    return loss(image, text, image[i], text[t], **settings)

  return value


def cases():
  """Returns {name: function of (image, text) -> (loss, terms)}."""
  band = {"lower": 0.0, "upper": 0.9, "weight": 3.0, "margin": 0.2}
  return {
    "SH": losses.sum_of_hinges,
    "MH": losses.max_of_hinges,
    "IMC l1, released": lambda i, t: losses.imc(i, t, distance="l1", **band),
    "IMC cosine, released": lambda i, t: losses.imc(
      i, t, distance="cosine", lower=0.01, upper=0.3, weight=3.0
    ),
    "InfoNCE": lambda i, t: losses.info_nce(i, t, temperature=0.2),
    "sigmoid": lambda i, t: losses.sigmoid(i, t, temperature=0.2, bias=-3.0),
    "HN": mined(losses.hard_negative),
    "F-HN": mined(losses.full_hard_negative, same_pair=jnp.ones(len(IMAGE))),
  }


def draw(path):
  """Writes the figure."""
  found = cases()
  figure, axes = pyplot.subplots(2, 4, figsize=(12, 5.2), layout="constrained")
  for axis, (name, loss) in zip(axes.flat, found.items(), strict=True):
    value = lambda i, t, loss=loss: loss(rows(i), rows(t))[0]  # noqa: E731
    steps = [-np.asarray(g) for g in jax.grad(value, argnums=(0, 1))(IMAGE, TEXT)]
    scale = LONGEST / max(np.abs(steps).max(), 1e-9)
    arc = np.linspace(0, np.pi, 100)
    ends = []
    for angle, step, marker, radius in ((IMAGE, steps[0], "o", 1.0), (TEXT, steps[1], "s", 1.4)):
      axis.plot(radius * np.cos(arc), radius * np.sin(arc), color="0.88", zorder=0)
      at = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
      along = scale * step[:, None] * np.stack([-np.sin(angle), np.cos(angle)], axis=1)
      ends.append(at)
      for k in range(len(angle)):
        axis.plot(*at[k], marker, color=f"C{k}", markersize=9)
        if np.hypot(*along[k]) > 0.03:
          arrow = {"arrowstyle": "-|>", "color": f"C{k}", "lw": 2, "mutation_scale": 14}
          axis.annotate("", at[k] + along[k], at[k], arrowprops=arrow, zorder=3)
    for k, (start, end) in enumerate(zip(*ends, strict=True)):
      axis.plot(*zip(start, end, strict=True), ":", color=f"C{k}", lw=1)
    axis.set(title=name, xlim=(-1.5, 1.7), ylim=(-0.1, 1.75), aspect="equal")
    axis.axis("off")
  figure.savefig(path, dpi=90)
  pyplot.close(figure)


if __name__ == "__main__":
  draw(pathlib.Path(__file__).parent / "gradients.png")
