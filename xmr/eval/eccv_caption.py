"""Retrieval against more positives than the dataset's own pairs: ECCV Caption and Crisscrossed
Captions.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32, Int64, Integer, Real

from xmr.errors import UserError
from xmr.eval.readers import load_json
from xmr.eval.top_k import top_k

# Two of the 22,550 captions that ECCV Caption names are not among Karpathy's 25,000; a wrong split
# lacks nearly all.
MOST_ABSENT = 0.01

DIRECTIONS = {"i2t": "image_to_caption", "t2i": "caption_to_image"}


@dataclasses.dataclass(frozen=True)
class Positives:
  """The gallery items that are positives of each query, in one direction.

  query: [Q] int32, rows of the queries that have positives; start: [Q + 1] int64 and item: [P]
  int32, the positives of query q are item[start[q]:start[q + 1]], all different, or -1 for one that
  the gallery lacks: it is never found but counts among the query's positives, as in the authors'
  code.
  """

  query: Int32[np.ndarray, " Q"]
  start: Int64[np.ndarray, " Q+1"]
  item: Int32[np.ndarray, " P"]


def load_positives(
  folder: str | os.PathLike,
  name: str,
  *,
  image_id: Sequence[int] | Integer[np.ndarray, " N"],
  text_id: Sequence[int] | Integer[np.ndarray, " T"],
) -> dict[str, Positives]:
  """Reads NAME_image_to_caption.json and NAME_caption_to_image.json of ECCV Caption.

  Args:
    folder: of the JSON files {query id: [item ids]}; name: eccv, cxc or original.
    image_id: [N] int, COCO image id of each image; text_id: [T] int, COCO annotation id (sentid) of
      each caption.

  Returns:
    {"i2t": Positives, "t2i": Positives} in rows of the split.

  Raises:
    UserError: a missing or unreadable file, a query id or over 1 % of the item ids that the split
      lacks: the metrics need all of COCO 5K test.
  """
  rows = {"image": _rows(image_id, "image"), "caption": _rows(text_id, "caption")}
  positives = {}
  for direction, stem in DIRECTIONS.items():
    path = pathlib.Path(folder) / f"{name}_{stem}.json"
    if not path.is_file():
      raise UserError(f"no file {path}; expected the data folder of ECCV Caption")
    entries = _entries(path)
    source, target = stem.split("_to_")
    answers = [
      sorted({rows[target].get(item, -1 - item) for item in items}) for items in entries.values()
    ]
    if not all(answers):
      raise UserError(
        f"{path}: {source} {list(entries)[answers.index([])]} has no positives; expected at "
        "least one"
      )
    item = np.concatenate(answers)
    _check_known(entries, rows[source], source, path)
    if (item < 0).mean() > MOST_ABSENT:
      found = (
        f"{(item < 0).sum()} of {len(item)} {target} ids are not in the split, such as "
        f"{-1 - item.min()}"
      )
      raise UserError(f"{path}: {found}; expected all of COCO 5K test")
    query = [rows[source][identity] for identity in entries]
    start = np.concatenate([[0], np.cumsum([len(found) for found in answers])]).astype(np.int64)
    positives[direction] = Positives(
      np.array(query, np.int32), start, np.maximum(item, -1).astype(np.int32)
    )
  return positives


def retrieval(
  image: Real[np.ndarray, "N D"],
  text: Real[np.ndarray, "T D"],
  positives: Mapping[str, Positives],
  *,
  kind: str = "cosine",
  recall_at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
  """Scores both directions against extra positives.

  With R the number of positives of a query and P(r) the precision of its first r results:
    "map_at_r": mean over queries of (1/R) sum_{r <= R} P(r) [result r is a positive];
    "r_precision": mean of P(R);  "r1", "r5", "r10": share of queries with a positive among the
    first K results.

  Args:
    positives: of `load_positives`.  kind: of similarity.
    recall_at: the K of recall.

  Returns:
    {"i2t/map_at_r", "i2t/r_precision", "i2t/r1", ..., "t2i/map_at_r", ...} in percent.

  Raises:
    UserError: K or the most positives of a query exceed the gallery.

  References:
    Chun et al., ECCV Caption, ECCV 2022 (mAP@R after Musgrave et al. 2020). CxC R@K: Parekh et al.,
    EACL 2021.
  """
  metrics = {}
  for direction, (query, gallery) in {"i2t": (image, text), "t2i": (text, image)}.items():
    answers = positives[direction]
    count = np.diff(answers.start)
    k = int(max(count.max(), max(recall_at)))
    if k > len(gallery):
      raise UserError(
        f"{direction}: {k} results are needed but the gallery has {len(gallery)} items"
      )
    queries = np.asarray(query)[answers.query]
    found = np.asarray(top_k(queries, gallery, k, kind=kind, text_query=direction == "t2i")[1])
    hit = _hits(found, answers, len(gallery))
    rank = np.arange(1, k + 1)
    within = rank <= count[:, None]
    precision = np.cumsum(hit, axis=1) / rank
    metrics[f"{direction}/map_at_r"] = 100 * float(
      ((precision * hit * within).sum(axis=1) / count).mean()
    )
    metrics[f"{direction}/r_precision"] = 100 * float(((hit & within).sum(axis=1) / count).mean())
    for at in recall_at:
      metrics[f"{direction}/r{at}"] = 100 * float(hit[:, :at].any(axis=1).mean())
  return metrics


def _entries(path):
  """Returns {query id: [item ids]} of a file, all ids int."""
  try:
    entries = {
      int(query): [int(item) for item in items] for query, items in load_json(path).items()
    }
    wide = [item for items in entries.values() for item in items if abs(item) >= 2**62]
    if wide:
      raise ValueError(f"the id {wide[0]}")
  except (AttributeError, TypeError, ValueError, OverflowError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{path} holds {error}; expected {{query id: [item ids]}}") from None
  if not entries:
    raise UserError(f"{path} holds no queries; expected {{query id: [item ids]}}")
  return entries


def _hits(found, answers, width):
  """[Q, k] bool, True where a result is a positive of its query."""
  rows = np.arange(len(found), dtype=np.int64)
  keys = np.repeat(rows, np.diff(answers.start)) * width + answers.item
  return np.isin(rows[:, None] * width + found, keys[answers.item >= 0])


def _rows(identities, what):
  identities = np.asarray(identities)
  rows = {int(identity): row for row, identity in enumerate(identities)}
  if len(rows) != len(identities):
    raise UserError(f"{what} ids repeat: {len(identities)} ids, {len(rows)} of them different")
  return rows


def _check_known(identities, rows, what, path):
  absent = [identity for identity in identities if identity not in rows]
  if absent:
    found = f"{what} {absent[0]} is not among the {len(rows)} {what}s ({len(absent)} such)"
    raise UserError(f"{path}: {found}; expected all of COCO 5K test")
