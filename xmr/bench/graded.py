"""Graded retrieval: nDCG and alpha-nDCG in four tasks, embeddings and relevance given."""

from xmr.bench.cases import OURS, Case, Goal

TOP, ALPHA = 25, 0.5
LOOP_PART = 1 / 10  # of the queries of each task


def cases(*, quick):
  """Returns the one case: N images, five captions each."""
  n_images, dim = (60, 32) if quick else (1000, 1024)
  here = "xmr.bench.graded:"
  return [
    Case(
      name=f"{n_images} x {5 * n_images} x {dim}, four tasks",
      contenders={OURS: here + "ours", "numpy": here + "in_numpy"},
      arguments={"n_images": n_images, "dim": dim},
      # Products of i2t and t2i (the same), i2i and t2t, of which half would do.
      products=2.0 * dim * n_images**2 * (5 + 1 / 2 + 25 / 2),
      part={"numpy": LOOP_PART},
      goals=() if quick else (Goal("ratio/best", at_least=1),),
    )
  ]


def start(n_images, dim):
  """Returns (image [N, D], text [5 N, D], image_of_text [5 N], relevance [5 N, N])."""
  import numpy as np

  from xmr.bench.ranks import embeddings

  image, text, owner = embeddings(n_images, dim)
  relevance = np.random.default_rng(1).random((len(text), n_images), dtype=np.float32) ** 4
  relevance[np.arange(len(text)), owner] = 1
  return image, text, owner, relevance


def ours(*, n_images, dim):
  """eval.graded, with novelty, coverage and diversity of the lists beside."""
  from xmr.eval import graded

  given = start(n_images, dim)
  return {"run": lambda: graded(*given, k=TOP, alpha=ALPHA, form="standard") and None}


def in_numpy(*, n_images, dim):
  """A product, an argsort and the sums per query, on a part of the queries of each task."""
  import numpy as np

  image, text, owner, relevance = start(n_images, dim)
  discount = 1 / np.log2(np.arange(TOP) + 2)

  def scores(found, ideal):
    values = []
    for rel in (found, ideal):
      gain = rel * (1 - ALPHA) ** (np.cumsum(rel) - rel)
      values += [((2**rel - 1) * discount).sum(), (gain * discount).sum()]
    return values[0] / values[2], values[1] / values[3]

  def query(vector, gallery, relevant):
    order = np.argsort(gallery @ vector)[::-1][:TOP]
    return scores(relevant[order], np.sort(relevant)[::-1][:TOP])

  def run():
    for i in range(round(LOOP_PART * n_images)):
      query(image[i], text, relevance[:, i])
      for t in range(5 * i, 5 * i + 5):
        query(text[t], image, relevance[t])
        query(image[i], image, relevance[t])
        query(text[t], text, relevance[:, owner[t]])

  return {"run": run}
