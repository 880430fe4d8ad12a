"""How one field of a config moves a metric: the plots of the IMC paper (distances, lambda), for any
field of a sweep.
"""

import numpy as np

COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#57606a", "#9a6700", "#1b7c83")
INK = "#1f2328"


def figure(field, values, setting_of, stats, *, name="rsum"):
  """Draws a metric over the values of one field: a line, or a group of points, for each setting of
  the other fields.

  Args:
    field: of the config.  values: list of its values as text; a line joins numbers, and words are
      points.
    setting_of: {name of a setting: {field: text}}.
    stats: {name of a setting: {"mean", "deviation"}}; whiskers are one deviation over seeds.
    name: of the metric.
  Returns:
    matplotlib Figure.
  """
  from matplotlib.figure import Figure

  others = {}
  for setting, fields in setting_of.items():
    rest = " ".join(value for key, value in fields.items() if key != field)
    others.setdefault(rest, {})[fields[field]] = stats[setting]
  numbers = _numbers(values)
  drawn = Figure(figsize=(5.4, 3.6), dpi=130, facecolor="white")
  axis = drawn.subplots()
  width = 0.5 / len(others)
  for place, (rest, found) in enumerate(others.items()):
    kept = [value for value in values if value in found]
    mean = np.array([found[value]["mean"] for value in kept])
    deviation = np.nan_to_num([found[value]["deviation"] for value in kept])
    style = {
      "color": COLOURS[place % len(COLOURS)],
      "label": rest or None,
      "marker": "o",
      "capsize": 3,
    }
    if numbers is not None:
      x = [numbers[values.index(value)] for value in kept]
      axis.errorbar(x, mean, yerr=deviation, markersize=4, linewidth=1.5, **style)
    else:
      x = (
        np.array([values.index(value) for value in kept]) + (place - (len(others) - 1) / 2) * width
      )
      # Not bars: bars begin at zero, and differences would be too small to see.
      axis.errorbar(
        x, mean, yerr=deviation, markersize=7, linestyle="none", elinewidth=1.5, **style
      )
  if numbers is None:
    axis.set_xticks(range(len(values)), values)
    axis.set_xlim(-0.5, len(values) - 0.5)
  elif min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, values)
  axis.set_xlabel(field, color=INK)
  axis.set_ylabel(name, color=INK)
  axis.grid(axis="y", color="#d0d7de", linewidth=0.6)
  axis.set_axisbelow(True)
  for side in ("top", "right"):
    axis.spines[side].set_visible(False)
  if len(others) > 1:
    axis.legend(loc="upper right", frameon=False, fontsize=7)
  drawn.tight_layout()
  return drawn


def _numbers(values):
  try:
    return [float(value) for value in values]
  except ValueError:
    return None
