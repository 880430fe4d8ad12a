"""Templates, images and data of a page that needs no network: everything in one HTML file,
everything escaped.
"""

import base64
import functools
import json
import pathlib

import numpy as np
from markupsafe import Markup

from xmr.inspect import study
from xmr.inspect.pictures import thumbnail
from xmr.inspect.plots import picture
from xmr.ops.alignment import NAMES

FOLDER = pathlib.Path(__file__).parent
LIMIT = 14_500_000  # bytes of a page
THUMBNAIL = 128  # pixels of the longer side
SEARCHABLE = 10_000  # captions that the page's search knows
ALIGNABLE = 1_000  # the same by alignments, each of which costs words x words products
SHOWN = 300  # characters of a caption on the page


@functools.cache
def environment():
  """Returns the jinja2 environment: autoescaped, undefined names are errors."""
  import jinja2

  made = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  made.globals["asset"] = lambda name: Markup((FOLDER / name).read_text(encoding="utf-8"))
  made.filters["json"] = script_json
  return made


def render(template, **context):
  """Returns the HTML of a template of this folder."""
  return environment().get_template(template).render(**context)


def script_json(value):
  """Returns JSON that stands in a <script> without ending it, whatever its strings hold."""
  text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
  for sign in "<>&\u2028\u2029":
    text = text.replace(sign, f"\\u{ord(sign):04x}")
  # Half a surrogate pair has no UTF-8 form.
  return Markup(text.encode("utf-8", "replace").decode("utf-8"))


def clipped(text):
  """Returns a caption as the page shows it: cut where it is very long."""
  return text if len(text) <= SHOWN else text[: SHOWN - 1] + "\u2026"


def searchable(split, limit=SEARCHABLE):
  """Returns (images, captions), rows [n] and [t]: as many images from the first on as have `limit`
  captions together.
  """
  counts = np.bincount(split.image_of_text, minlength=len(split.image_id))
  n = max(1, int(np.searchsorted(np.cumsum(counts), limit, side="right")))
  return np.arange(n), np.flatnonzero(split.image_of_text < n)


def search_data(image, text, split, *, kind, k=10, limit=None):
  """Returns the data of the page's search: captions, and the k neighbours of every image and
  caption in the four tasks.

  Args:
    image: [N, D].  text: [T, D].  split: Split.  kind: of similarity.
    k: neighbours.
    limit: captions that can be searched; None: SEARCHABLE, or ALIGNABLE by an alignment.
  Returns:
    {"images", "captions": rows of the split, "texts": [t] str, "of": [t] index of the caption's
      image, "names": [n] str, "i2t", "t2i", "i2i", "t2t": [[index, score x 1000, index, ...] of
      each query]}; an index counts within the rows listed in "images" or "captions".
  """
  if limit is None:
    limit = ALIGNABLE if kind in NAMES else SEARCHABLE
  images, captions = searchable(split, limit)
  image, text = image[images], text[captions]
  lists = {
    "i2t": study.neighbours(image, text, k, kind=kind, text_query=False),
    "t2i": study.neighbours(text, image, k, kind=kind, text_query=True),
    "i2i": study.neighbours(image, image, k, kind=kind, text_query=False, same=True),
    "t2t": study.neighbours(text, text, k, kind=kind, text_query=True, same=True),
  }
  flat = {
    task: np.stack([found, np.rint(1000 * scores).astype(int)], axis=2)
    .reshape(len(found), -1)
    .tolist()
    for task, (scores, found) in lists.items()
  }
  return {
    "images": images.tolist(),
    "captions": captions.tolist(),
    "texts": [clipped(split.texts[row]) for row in captions],
    "of": split.image_of_text[captions].tolist(),
    "names": [split.image_names[row] for row in images],
    **flat,
  }


def thumbnails(split, rows, *, folder, budget, side=THUMBNAIL):
  """Thumbnails of images, in the order given, as long as they fit.

  Args:
    split: Split.  rows: image rows, the most needed first; repeated ones are skipped.
    folder: of the dataset, see plots.picture.  budget: characters in all.
  Returns:
    ({row: base64 of WebP}, rows that did not fit); neither holds images that cannot be read.
  """
  made, left, spent = {}, 0, 0
  for row in dict.fromkeys(map(int, rows)):
    if spent >= budget:
      left += 1
      continue
    shown = picture(split, row, folder=folder)
    if shown is None:
      continue
    encoded = base64.b64encode(thumbnail(shown, side=side)).decode("ascii")
    if spent + len(encoded) + 16 > budget:
      spent, left = budget, left + 1
      continue
    spent += len(encoded) + 16
    made[row] = encoded
  return made, left
