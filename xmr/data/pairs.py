"""Pairs of a text and another item (an image or a second text), labelled as of the same category or
not.
"""

import math

import numpy as np

from xmr.errors import UserError

SCHEMES = ("grid", "balanced", "released")
RELEASED_POSITIVES = 3800  # random same-category pairs of each category
RELEASED_NEGATIVES = 440  # random pairs of each ordered pair of categories


class Pairs:
  """Batches of pairs; a batch depends only on the seed and the step, so a run resumes by its step.

  grid: U texts and U items, all U x U pairs. One encoded text serves U pairs, and the losses weigh
    positives and negatives separately, so that few positives count as much as many negatives.
  balanced: U texts with four items each: its own, one of the same category, two of other categories
    (first a category, then an item of it, uniformly).
  released: the list of keras_gcn, drawn once by the seed and permuted each epoch: the N true pairs,
    3,800 random pairs within each category, 440 of each ordered pair of categories (English
    Wikipedia: 40,173 and 39,600); a batch holds `batch_size` pairs of as many texts.

  With own=False no text is paired with its own item, as in stage 1, where that is the same text.
  """

  def __init__(self, label, *, batch_size, scheme="grid", seed=0, own=True):
    """Checks the arguments and, for "released", draws the list.

    Args:
      label: [N] int, category of text i and of item i, its own.
      batch_size: pairs per batch: grid: the largest square not above; balanced: a multiple of 4;
        released: any.
      scheme: as above.  seed: int.  own: False excludes the pair of a text and its own item (in
        grid: marked by `use`).
    Raises:
      UserError: unknown scheme, fewer than two categories, a category of one item, a batch larger
        than an epoch.
    """
    self.label, self.seed, self.scheme, self.own = np.asarray(label), seed, scheme, own
    if scheme not in SCHEMES:
      raise UserError(f"config.pairs.scheme is {scheme!r}; expected one of {', '.join(SCHEMES)}")
    self.categories, self.category_of, counts = np.unique(
      self.label, return_inverse=True, return_counts=True
    )
    if len(counts) < 2 or counts.min() < 2:
      found = dict(zip(self.categories.tolist(), counts.tolist(), strict=True))
      raise UserError(f"pairs need at least 2 categories of at least 2 items each; found {found}")
    self.members = [np.flatnonzero(self.category_of == c) for c in range(len(counts))]
    if scheme == "balanced" and batch_size % 4:
      raise UserError(
        f"config.batch_size is {batch_size}; expected a multiple of 4 with "
        "config.pairs.scheme=balanced"
      )
    self.texts = {
      "grid": math.isqrt(batch_size),
      "balanced": batch_size // 4,
      "released": batch_size,
    }[scheme]
    self.list = self._released() if scheme == "released" else ()
    rows = len(self.list[0]) if self.list else len(self.label)
    self.steps_per_epoch = rows // max(1, self.texts)
    if self.texts < 2 or not self.steps_per_epoch:
      raise UserError(
        f"config.batch_size={batch_size} takes {self.texts} of {rows} rows a step; expected from "
        f"2 to {rows}"
      )

  def batch(self, step):
    """Returns the batch of a step.

    Args:
      step: int from 0.
    Returns:
      dict of text: [U] int32, rows that are encoded; item: [V] int32, rows that are encoded;
        text_of_pair, item_of_pair: [M] int32, rows of those two; positive: [M] bool, same category.
    """
    epoch, index = divmod(step, self.steps_per_epoch)
    rows = self._random(1, epoch).permutation(len(self.list[0]) if self.list else len(self.label))
    rows = rows[index * self.texts : (index + 1) * self.texts]
    random = self._random(2, step)
    if self.scheme == "grid":
      text = item = rows
      count = len(rows)
      every = np.divmod(np.arange(count**2), count)
      of_text, of_item = every if self.own else np.triu_indices(count, 1)
    elif self.scheme == "balanced":
      text, item = rows, np.concatenate([self._partners(row, random) for row in rows])
      of_text, of_item = np.repeat(np.arange(len(rows)), 4), np.arange(len(item))
    else:
      text, item = (column[rows] for column in self.list)
      of_text = of_item = np.arange(len(rows))
    positive = self.category_of[text[of_text]] == self.category_of[item[of_item]]
    return {
      "text": text.astype(np.int32),
      "item": item.astype(np.int32),
      "text_of_pair": of_text.astype(np.int32),
      "item_of_pair": of_item.astype(np.int32),
      "positive": positive,
    }

  def _random(self, purpose, number):
    return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, purpose, number]))

  def _same(self, row, random):
    others = self.members[self.category_of[row]]
    other = others[random.integers(len(others) - 1)]
    return others[-1] if other == row else other

  def _partners(self, row, random):
    other = (self.category_of[row] + random.integers(1, len(self.members), 2)) % len(self.members)
    negatives = [random.choice(self.members[c]) for c in other]
    return [row if self.own else self._same(row, random), self._same(row, random), *negatives]

  def _released(self):
    random, texts, items = self._random(0, 0), [], []
    if self.own:
      texts.append(np.arange(len(self.label)))
      items.append(np.arange(len(self.label)))
    for i, first in enumerate(self.members):
      for j, second in enumerate(self.members):
        count = RELEASED_POSITIVES if i == j else RELEASED_NEGATIVES
        text = random.integers(len(first), size=count)
        item = random.integers(len(second), size=count)
        if i == j and not self.own:
          item = (text + 1 + random.integers(len(second) - 1, size=count)) % len(second)
        texts.append(first[text])
        items.append(second[item])
    return np.concatenate(texts), np.concatenate(items)
