"""What a run says of your own data, and keeps of it in data.json."""

import numpy as np

from xmr.data.own.rows import SPLITS


def of(result, digest, *, how, given, split, images, hashed="bytes"):
  """Returns (lines for people, record for data.json).

  Args:
    result: {name: Split}.  digest: [N] uint64 of the images' bytes.
    how: str, how splits are given, "" where none is.  given: names of those that are.
    split: [N] str.  images: [N] with .name.
    hashed: what of an image decides its split where none is given.
  """
  counts = {name: len(part.image_id) for name, part in result.items()}
  rule = _rule(how, given, hashed)
  lines = [f"splits: {', '.join(f'{n:,} {name}' for name, n in counts.items())} images; {rule}"]
  crossing, shown, same = copies(digest, split, [image.name for image in images])
  if crossing:
    lines.append(f"copies: {crossing:,} images are in two splits ({shown}); results flatter")
  elif same:
    lines.append(f"copies: {same:,} images are exact copies of another, in the same split")
  shared, examples = shared_captions(result)
  if shared:
    lines.append(f"captions of several images: {shared:,}, as {examples}")
  return lines, {
    "rule": rule,
    "images": counts,
    "captions": {name: len(part.texts) for name, part in result.items()},
    "copies_across_splits": crossing,
    "captions_of_several_images": shared,
    "splits": {name: part.image_names for name, part in result.items()},
  }


def _rule(how, given, hashed):
  if not given:
    return f"none is given: 80/10/10 by a hash of each image's {hashed}"
  taken = [name for name in SPLITS if name not in given]
  if taken:
    how += (
      f"; {' and '.join(taken)} not given: a tenth each by a hash of the {hashed}, out of train"
    )
  return how


def copies(digest, split, names):
  """Returns (images that are exact copies of one in an earlier split, the first three as text,
  images that are copies of any other).

  Args:
    digest: [N] uint64 of the images' bytes.  split: [N] str.  names: [N].
  """
  first, crossing, same = {}, [], 0
  for name in SPLITS:
    for row in np.flatnonzero(split == name):
      other = first.setdefault(int(digest[row]), row)
      same += other != row
      if split[other] != name:
        crossing.append(f"{names[other]} in {split[other]} and {names[row]} in {name}")
  return len(crossing), ", ".join(crossing[:3]), int(same)


def shared_captions(result):
  """Returns (different captions that occur for several images, the first three as text); letters
  and blanks do not count.
  """
  images = {}
  for part in result.values():
    for text, row in zip(part.texts, part.image_of_text, strict=True):
      images.setdefault(" ".join(text.lower().split()), set()).add(int(part.image_id[row]))
  found = [(text, len(of)) for text, of in images.items() if len(of) > 1]
  return len(found), ", ".join(f'"{text[:60]}" ({n} images)' for text, n in found[:3])
