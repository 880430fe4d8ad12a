"""Scenes of coloured shapes: drawn, and described by five captions each."""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageDraw

SIZE = 96  # pixels of a side
CAPTIONS = 5
SEED = 8
VERSION = 1  # of the drawings and captions, part of the cache's key

COLOURS = {
  "red": (214, 40, 40),
  "green": (46, 160, 67),
  "blue": (40, 80, 210),
  "yellow": (245, 210, 40),
  "purple": (140, 60, 170),
  "orange": (245, 130, 30),
  "black": (20, 20, 20),
  "white": (250, 250, 250),
}
BACKGROUNDS = {
  "grey": (128, 128, 128),
  "pink": (240, 170, 190),
  "brown": (110, 75, 50),
  "turquoise": (110, 200, 200),
}
SHAPES = {
  "circle": ("circle", "disc", "ball"),
  "square": ("square", "box", "block"),
  "triangle": ("triangle", "wedge"),
  "star": ("star",),
  "cross": ("cross", "plus"),
  "ring": ("ring", "hoop"),
}
SIZES = {8: ("small", "tiny", "little"), 15: ("large", "big", "huge")}  # radius in pixels -> words
COLOUR_WORDS = {"purple": ("purple", "violet"), "red": ("red", "crimson"), "grey": ("grey", "gray")}
GROUND_WORDS = ("background", "backdrop", "ground")

# {0}, {1}, {2} are the shapes from top to bottom, {ground} the background. Nothing says left or
# right: training mirrors.
TEMPLATES = {
  2: (
    "{0} above {1}.",
    "{1} below {0} on {ground}.",
    "There is {0} over {1}.",
    "{ground} with {1} and {0}.",
    "A picture of {1} under {0}.",
    "Two shapes, {0} and {1}, on {ground}.",
    "{0} sits higher than {1}.",
  ),
  3: (
    "{0} above {1} and {2}.",
    "{2} below {1} and {0} on {ground}.",
    "There is {0} over {1}, and {2} at the bottom.",
    "{ground} with {1}, {0} and {2}.",
    "{1} between {0} and {2}.",
    "Three shapes on {ground}: {2}, {1} and {0}.",
    "A picture of {2} under {1} under {0}.",
  ),
}


@dataclasses.dataclass(frozen=True)
class Scene:
  """What is drawn: background, shapes from top to bottom as (kind, colour, radius, x, y) in pixels,
  five captions.
  """

  background: str
  shapes: tuple[tuple[str, str, int, float, float], ...]
  captions: list[str]

  def png(self):
    """Returns the drawing, SIZE x SIZE pixels, as the bytes of a PNG file."""
    scale = 4
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), BACKGROUNDS[self.background])
    draw = ImageDraw.Draw(image)
    for kind, colour, radius, x, y in self.shapes:
      _draw(draw, kind, COLOURS[colour], radius * scale, x * scale, y * scale)
    file = io.BytesIO()
    image.reduce(scale).save(file, "PNG")
    return file.getvalue()


def scenes_of(split, counts):
  """Yields (image_id, Scene) of a split; a scene depends on its split and index alone."""
  first = sum(count for _, count in list(counts.items())[: list(counts).index(split)])
  for index in range(counts[split]):
    key = np.array([SEED, list(counts).index(split)], np.uint64)
    counter = np.array([0, 0, 0, index], np.uint64)
    yield first + index, _scene(np.random.Generator(np.random.Philox(key=key, counter=counter)))


def name_of(number):
  """Returns the name of a scene's image."""
  return f"scene_{number:06d}.png"


def _scene(rng):
  background = _choice(rng, list(BACKGROUNDS))
  number = int(rng.integers(2, 4))
  colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:number]]
  radii = [_choice(rng, list(SIZES)) for _ in range(number)]
  # From top to bottom in bands of their own, so that "above" is never in doubt and no shape hides
  # another.
  free = SIZE - 2 * sum(radii) - 4
  gaps = np.diff(np.sort(rng.uniform(0, free, number)), prepend=0)
  shapes, y = [], 2.0
  for colour, radius, gap in zip(colours, radii, gaps, strict=True):
    y += gap + radius
    x = rng.uniform(radius + 2, SIZE - radius - 2)
    shapes.append(
      (_choice(rng, list(SHAPES)), colour, radius, round(float(x), 1), round(float(y), 1))
    )
    y += radius
  templates = [TEMPLATES[number][i] for i in rng.permutation(len(TEMPLATES[number]))[:CAPTIONS]]
  return Scene(
    background,
    tuple(shapes),
    [_caption(rng, template, background, shapes) for template in templates],
  )


def _caption(rng, template, background, shapes):
  phrases = [_phrase(rng, *shape[:3]) for shape in shapes]
  ground = _article(
    f"{_choice(rng, COLOUR_WORDS.get(background, (background,)))} {_choice(rng, GROUND_WORDS)}"
  )
  caption = template.format(*phrases, ground=ground)
  return caption[0].upper() + caption[1:]


def _phrase(rng, kind, colour, radius):
  words = [_choice(rng, COLOUR_WORDS.get(colour, (colour,))), _choice(rng, SHAPES[kind])]
  if rng.random() < 0.7:
    words.insert(0, _choice(rng, SIZES[radius]))
  return _article(" ".join(words))


def _article(phrase):
  return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _choice(rng, options):
  return options[int(rng.integers(len(options)))]


def _draw(draw, kind, colour, r, x, y):
  if kind in ("circle", "ring"):
    draw.ellipse(
      (x - r, y - r, x + r, y + r),
      fill=colour if kind == "circle" else None,
      outline=colour,
      width=round(r / 2.5),
    )
  elif kind == "square":
    draw.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=colour)
  elif kind == "cross":
    draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=colour)
    draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=colour)
  else:
    corners, inner = (3, None) if kind == "triangle" else (5, 0.4)
    angles = (
      np.arange(corners * 2 if inner else corners) * 2 * np.pi / (corners * 2 if inner else corners)
      - np.pi / 2
    )
    radii = (
      np.where(np.arange(len(angles)) % 2 == 0, r, inner * r) if inner else np.full(len(angles), r)
    )
    draw.polygon(
      list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)), fill=colour
    )
