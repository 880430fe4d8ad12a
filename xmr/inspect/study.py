"""The report's study of a run's embeddings: neighbours, failed queries and hubs."""

import numpy as np

from xmr.errors import UserError
from xmr.eval import top_k
from xmr.eval.ranks import outcomes as of_pairs
from xmr.eval.relevance import load_spice, rouge_l
from xmr.ops.alignment import NAMES, WITHIN

DIRECTIONS = ("i2t", "t2i")


def outcomes(image, text, image_of_text, *, kind):
  """Returns {"i2t": {"rank": [N], "ties": [N]}, "t2i": {"rank": [T], "ties": [T]}} of all queries.

  rank is that of the best right answer, from 0; ties counts the wrong answers with the same score.
  """
  pairs = image_of_text, np.arange(len(text))
  found = of_pairs(image, text, pairs, kind=kind)
  return dict(zip(DIRECTIONS, found, strict=True))


def neighbours(query, gallery, k, *, kind, text_query, same=False):
  """Returns the k best of each query, (scores [Q, k'] float32, indices [Q, k'] int32); k' is less
  than k in a small gallery.

  same: True where queries and gallery are the same rows; no query is then among its own answers.
  """
  k = min(k, len(gallery) - same)
  if same and kind in NAMES:
    kind, text_query = WITHIN[kind], False
  if k < 1:
    return np.zeros((len(query), 0), np.float32), np.zeros((len(query), 0), np.int32)
  scores, found = (
    np.asarray(x) for x in top_k(query, gallery, k + same, kind=kind, text_query=text_query)
  )
  return without(scores, found, np.arange(len(query))) if same else (scores, found)


def without(scores, found, own):
  """Removes item own[q] from row q of [Q, k + 1] lists, or the last item if own[q] is missing."""
  away = found == own[:, None]
  away[~away.any(axis=1), -1] = True
  return scores[~away].reshape(len(found), -1), found[~away].reshape(len(found), -1)


def worst(rank, n):
  """Returns the n queries [n] int with the largest ranks [Q], the worst first; of equal ranks, the
  lowest index first.
  """
  return np.argsort(-rank, kind="stable")[:n]


def hubs(found, n_gallery, n):
  """Finds the items that stand in the lists of many queries.

  Args:
    found: [Q, k] int, lists of the queries.  n_gallery: int G.  n: items to return.
  Returns:
    {"items": [(item, number of lists that hold it)], most first; "mean": Q k / G; "skewness" of
    these numbers, 0 where all are equal, large where few items fill the lists; "never": number of
    items that no list holds}.
  References:
    Radovanovic et al., Hubs in space, JMLR 2010: the skewness of the k-occurrences.
  """
  occurrences = np.bincount(found.reshape(-1), minlength=n_gallery)
  order = np.argsort(-occurrences, kind="stable")[:n]
  deviation = occurrences - occurrences.mean()
  spread = occurrences.std()
  return {
    "items": [(int(item), int(occurrences[item])) for item in order if occurrences[item]],
    "mean": float(occurrences.mean()),
    "skewness": float(np.mean(deviation**3) / spread**3) if spread > 0 else 0.0,
    "never": int(np.count_nonzero(occurrences == 0)),
  }


def by_length(lengths, rank, *, groups=5):
  """Recall of captions by their number of words, in up to `groups` groups of about equal size.

  Args:
    lengths: [T] int, words.  rank: [T] int, 0-based.
  Returns:
    list of {"from", "to" (words), "count", "r1", "r10" (percent), "medr" (from 1)}.
  """
  edges = np.unique(np.quantile(lengths, np.linspace(0, 1, groups + 1)[1:], method="inverted_cdf"))
  rows = []
  for low, high in zip([lengths.min(), *(edges[:-1] + 1)], edges, strict=True):
    inside = rank[(lengths >= low) & (lengths <= high)]
    if len(inside):
      rows.append(
        {
          "from": int(low),
          "to": int(high),
          "count": len(inside),
          "r1": float(100 * np.mean(inside < 1)),
          "r10": float(100 * np.mean(inside < 10)),
          "medr": float(np.median(inside) + 1),
        }
      )
  return rows


class Relevance:
  """ROUGE-L of captions for images, and SPICE where the run's config names a file, computed for the
  pairs that a call asks for.
  """

  def __init__(self, split, *, spice=""):
    self.split = split
    self.captions = [[] for _ in split.image_id]
    for text, image in enumerate(split.image_of_text):
      self.captions[image].append(text)
    self.spice = (
      load_spice(spice, n_texts=len(split.texts), n_images=len(split.image_id)) if spice else None
    )
    self.names = ("ROUGE-L", "SPICE") if spice else ("ROUGE-L",)

  def __call__(self, texts, images):
    """Returns {(text, image): (ROUGE-L, and SPICE if known)} of all pairs of some texts and images,
    given as row numbers.
    """
    texts, images = sorted(set(map(int, texts))), sorted(set(map(int, images)))
    if not texts or not images:
      return {}
    # rouge_l scores captions of its own set, so the images of the texts belong to it, too.
    inside = sorted(set(images) | {int(self.split.image_of_text[text]) for text in texts})
    rows = [text for image in inside for text in self.captions[image]]
    place = {image: at for at, image in enumerate(inside)}
    own = np.array([place[int(self.split.image_of_text[row])] for row in rows])
    matrix = rouge_l([self.split.texts[row] for row in rows], own)
    at = {row: i for i, row in enumerate(rows)}
    spice = self.spice
    return {
      (text, image): (
        float(matrix[at[text], place[image]]),
        *(() if spice is None else (float(spice[text, image]),)),
      )
      for text in texts
      for image in images
    }


def qualitative(image, text, split, relevance, *, kind: str, rows, k=5):
  """The study of the reference project: a query image, its nearest images, and what each of its
  captions finds.

  Args:
    image: [N, D].  text: [T, D].  split: Split.
    relevance: Relevance.
    kind: of similarity.  rows: query images.  k: answers of a query.
  Returns:
    list of {"row", "i2i": [answer], "captions": [{"row", "t2i": [answer]}]}. An answer is {"row":
      image, "score", "right", "relevance": tuple of the query caption for the image; for i2i the
      mean over the query's captions}.
  """
  studies = []
  for row in rows:
    captions = relevance.captions[row]
    if len(image) > 1:
      scores, found = top_k(
        image[row : row + 1], image, min(k + 1, len(image)), kind=WITHIN.get(kind, kind)
      )
      scores, found = without(np.asarray(scores), np.asarray(found), np.array([row]))
    else:
      scores, found = np.zeros((1, 0)), np.zeros((1, 0), int)
    text_scores, text_found = neighbours(text[captions], image, k, kind=kind, text_query=True)
    values = relevance(captions, np.concatenate([found.reshape(-1), text_found.reshape(-1)]))

    def mean(item, captions=captions, values=values):
      return tuple(np.mean([values[caption, int(item)] for caption in captions], axis=0).tolist())

    studies.append(
      {
        "row": int(row),
        "i2i": [answer(i, s, False, mean(i)) for i, s in zip(found[0], scores[0], strict=True)],
        "captions": [
          {
            "row": caption,
            "t2i": [
              answer(i, s, i == row, values[caption, int(i)])
              for i, s in zip(line, score, strict=True)
            ],
          }
          for caption, line, score in zip(captions, text_found, text_scores, strict=True)
        ],
      }
    )
  return studies


def answer(row, score, right, relevance=()):
  return {
    "row": int(row),
    "score": float(score),
    "right": bool(right),
    "relevance": tuple(relevance),
  }


def same_split(first, second, *, names):
  """Raises UserError unless two runs are scored on the same images and captions."""
  if (
    first.texts != second.texts
    or first.image_names != second.image_names
    or len(first.image_id) != len(second.image_id)
  ):
    sizes = [
      f"{len(split.image_id)} images and {len(split.texts)} texts" for split in (first, second)
    ]
    raise UserError(
      f"{names[0]} and {names[1]} are scored on different splits: {sizes[0]}, and {sizes[1]}; "
      "expected the same"
    )
