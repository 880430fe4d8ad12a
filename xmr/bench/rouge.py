"""ROUGE-L relevance of every caption for every image."""

from xmr.bench.cases import OURS, Case, Goal

WORDS = 3000


def cases(*, quick):
  """Returns the one case: five captions of N images against each other."""
  n_images = 20 if quick else 1000
  pairs = (5 * n_images) ** 2
  here = "xmr.bench.rouge:"
  return [
    Case(
      name=f"{pairs / 1e6:g} M caption pairs",
      contenders={OURS: here + "ours", "python": here + "in_python"},
      arguments={"n_images": n_images},
      part={"python": python_pairs(n_images) / pairs},
      items=pairs,
      unit="pairs",
      goals=() if quick else (Goal("seconds", at_most=5),),
    )
  ]


def python_pairs(n_images):
  """Pairs that the plain contender does: of two captions with all, at most 10,000."""
  return min(10_000, 2 * 5 * n_images)


def captions(n_images):
  """Returns (texts [5 N], image_of_text): 6 to 18 words, frequent ones first as in language."""
  import numpy as np

  rng = np.random.default_rng(0)
  share = 1 / np.arange(1, WORDS + 1)
  lengths = rng.integers(6, 19, 5 * n_images)
  drawn = np.split(rng.choice(WORDS, lengths.sum(), p=share / share.sum()), np.cumsum(lengths)[:-1])
  return [" ".join(f"w{word}" for word in caption) for caption in drawn], np.arange(
    5 * n_images
  ) // 5


def ours(*, n_images):
  """relevance.rouge_l, without its cache."""
  from xmr.eval.relevance import rouge_l

  texts, owner = captions(n_images)
  return {"run": lambda: rouge_l(texts, owner, n_images=n_images).size and None}


def in_python(*, n_images):
  """The textbook's table of common subsequences, on a few pairs."""
  words = [text.split(" ") for text in captions(n_images)[0]]

  def common(a, b):
    row = [0] * (len(b) + 1)
    for word in a:
      before = 0
      for j, other in enumerate(b):
        before, row[j + 1] = row[j + 1], before + 1 if word == other else max(row[j + 1], row[j])
    return row[-1]

  def run():
    for pair in range(python_pairs(n_images)):
      common(words[pair // len(words)], words[pair % len(words)])

  return {"run": run}
