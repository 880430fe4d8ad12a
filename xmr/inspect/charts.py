"""Line charts as inline SVG; colours come from the page's style sheet, so that dark and light both
work.
"""

import math

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 8, 24
POINTS = 400  # of a line; more are thinned out

# more of them, as where a warm-up sums what training takes the largest of, and the axis is
# logarithmic
DECADES = 2
LOGARITHMIC = ("Training loss", "Gradient norm")

# Title of a chart -> its curves, as (name in metrics.jsonl, label). Charts without a curve are left
# out.
CHARTS = {
  "Training loss": (("train/loss", "loss"),),
  "Validation rsum": (("val/rsum", "rsum"),),
  "Validation MAP": (
    ("val/map", "mean"),
    ("val/i2t/map", "image to text"),
    ("val/t2i/map", "text to image"),
  ),
  "Image to text, validation recall (%)": (
    ("val/i2t/r1", "R@1"),
    ("val/i2t/r5", "R@5"),
    ("val/i2t/r10", "R@10"),
  ),
  "Text to image, validation recall (%)": (
    ("val/t2i/r1", "R@1"),
    ("val/t2i/r5", "R@5"),
    ("val/t2i/r10", "R@10"),
  ),
  "Gradient norm": (("train/gradient_norm", "norm"),),
  "Learning rate": (("learning_rate", "rate"),),
}


def charts(runs):
  """Returns [(title, Markup)] of the curves of one or two runs, [(label, Run.metrics)]."""
  drawn = []
  for title, names in CHARTS.items():
    lines = []
    for which, (run, metrics) in enumerate(runs):
      for place, (name, label) in enumerate(names):
        if name in metrics:
          full = f"{label}, {run}" if len(runs) > 1 else label
          lines.append((full, f"line{place} run{which}", *metrics[name]))
    if lines:
      drawn.append((title, chart(title, lines)))
  return drawn


def averaged(found):
  """The curve of weights between a run's start and its own, Markup; found: results["wise"]."""
  order = np.argsort(found["share"], kind="stable")
  share = np.array(found["share"])[order]
  splits = [name for name in found if name not in ("start", "share")]
  return chart(
    "rsum over the share of this run's weights",
    [
      (f"rsum, {name}", f"line{place} run0", share, np.array(found[name]["rsum"])[order])
      for place, name in enumerate(splits)
    ],
  )


def chart(title, lines):
  """Draws lines [(label, CSS classes, x [n], y [n])] over training steps, or over any x from 0 on.

  Points that are not finite are left out.
  """
  lines = [(label, style, x[np.isfinite(y)], y[np.isfinite(y)]) for label, style, x, y in lines]
  lines = [line for line in lines if len(line[2])]
  if not lines:
    return Markup('<p class="quiet">no finite values</p>')
  every_x, every_y = (np.concatenate([line[i] for line in lines]) for i in (2, 3))
  wide = title in LOGARITHMIC and 0 < every_y.min() * 10**DECADES < every_y.max()
  xs, ys = ticks(0, every_x.max()), (decades if wide else ticks)(every_y.min(), every_y.max())
  height = np.log10 if wide else np.asarray
  bottom, top = height(ys[0]), height(ys[-1])

  def across(x):
    return LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

  def down(y):
    return HEIGHT - BOTTOM - (height(y) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

  said = "; ".join(f"{label} from {y[0]:.4g} to {y[-1]:.4g}" for label, _, _, y in lines)
  parts = [
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(said)}">'
  ]
  for y in ys:
    parts.append(
      f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>'
    )
    parts.append(
      f'<text x="{LEFT - 5}" y="{down(y) + 3.5:.1f}" text-anchor="end">{short(y)}</text>'
    )
  for x in xs:
    parts.append(
      f'<text x="{across(x):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{short(x)}</text>'
    )
  for label, style, x, y in lines:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
    points = " ".join(f"{across(x[i]):.1f},{down(y[i]):.1f}" for i in chosen)
    parts.append(
      f'<polyline class="{style}" points="{points}"><title>{escape(label)}</title></polyline>'
    )
    if len(chosen) == 1:
      parts.append(f'<circle class="{style}" cx="{across(x[0]):.1f}" cy="{down(y[0]):.1f}" r="3"/>')
  keys = "".join(
    f'<span><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line class="{style}" x1="0" '
    'x2="24" y1="4" y2="4"/></svg>'
    f"{escape(label)} <b>{y[-1]:.4g}</b></span>"
    for label, style, _, y in lines
  )
  return Markup("".join(parts) + f'</svg><div class="keys">{keys}</div>')


def ticks(low, high):
  """Returns three to six round numbers [n] that enclose low to high."""
  if not high > low:
    spread = abs(low) * 0.1 or 1.0
    low, high = low - spread, high + spread
  rough = (high - low) / 4
  unit = 10 ** math.floor(math.log10(rough))
  step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
  return np.arange(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1) * step


def decades(low, high):
  """Returns the powers of ten [n] that enclose low to high, both positive."""
  return 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)


def short(value):
  """Returns a number in few characters: 12k, 0.002, 3e-05."""
  return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.4g}"
