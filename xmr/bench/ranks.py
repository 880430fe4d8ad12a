"""Ranks of every image's best caption and of every caption's image, both directions."""

from xmr.bench.cases import OURS, Case, Goal

LOOP_PART = 1 / 50  # of the queries, in each direction: the whole loop takes minutes
TOP = 10


def cases(*, quick):
  """Returns the one case: N images, five captions each."""
  n_images, dim = (200, 64) if quick else (5000, 1024)
  here = "xmr.bench.ranks:"
  return [
    Case(
      name=f"{n_images} x {5 * n_images} x {dim}",
      contenders={
        OURS: here + "ours",
        "loop": here + "loop",
        "argsort": here + "argsort",
        "faiss": here + "in_faiss",
      },
      arguments={"n_images": n_images, "dim": dim},
      products=2.0 * n_images * 5 * n_images * dim,
      part={"loop": LOOP_PART},
      goals=()
      if quick
      else (
        Goal("share", at_least=0.6),
        Goal("ratio/best", at_least=1),
        Goal("extra_mb", at_most=100),
      ),
    )
  ]


def embeddings(n_images, dim):
  """Returns (image [N, D], text [5 N, D], image_of_text [5 N]) with unit rows, as hard to tell
  apart as a trained model's.
  """
  import numpy as np

  rng = np.random.default_rng(0)
  image = rng.normal(size=(n_images, dim)).astype(np.float32)
  owner = np.arange(5 * n_images) // 5
  text = image[owner] + 4.0 * rng.normal(size=(5 * n_images, dim)).astype(np.float32)
  image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
  return image, text, owner


def ours(*, n_images, dim):
  """protocol.recall: both directions from one pass over the products."""
  from xmr.eval.protocol import recall

  image, text, owner = embeddings(n_images, dim)
  return {
    "run": lambda: recall(image, text, owner) and None,
    "answer": lambda: [recall(image, text, owner)[name] for name in ("i2t/r10", "t2i/r10")],
  }


def recall_at_top(rank):
  """Share of ranks [Q] below TOP, in percent."""
  return 100.0 * float((rank < TOP).mean())


def loop(*, n_images, dim):
  """A product and an argsort per query, as VSE++'s released evaluation does, on a part of the
  queries.
  """
  import numpy as np

  image, text, _ = embeddings(n_images, dim)
  count = max(1, round(LOOP_PART * n_images))

  def run():
    for i in range(count):
      order = np.argsort(text @ image[i])[::-1]
      min(int(np.flatnonzero(order == 5 * i + c)[0]) for c in range(5))
    for t in range(5 * count):
      order = np.argsort(image @ text[t])[::-1]
      np.flatnonzero(order == t // 5)[0]

  return {"run": run}


def argsort(*, n_images, dim):
  """One product, and argsort of the whole matrix along both axes."""
  import numpy as np

  image, text, owner = embeddings(n_images, dim)

  def ranks():
    scores = image @ text.T
    order = np.argsort(-scores, axis=1)
    i2t = (owner[order] == np.arange(n_images)[:, None]).argmax(axis=1)
    del order
    order = np.argsort(-scores.T, axis=1)
    return i2t, (order == owner[:, None]).argmax(axis=1)

  return {
    "run": lambda: ranks() and None,
    "answer": lambda: [recall_at_top(rank) for rank in ranks()],
  }


def in_faiss(*, n_images, dim):
  """IndexFlatIP, the ten best in each direction; no ranks beyond."""
  import faiss

  image, text, owner = embeddings(n_images, dim)
  sides = []
  for x in (image, text):
    index = faiss.IndexFlatIP(dim)
    index.add(x)
    sides.append(index)

  def best():
    return sides[1].search(image, TOP)[1], sides[0].search(text, TOP)[1]

  def answer():
    i2t, t2i = best()
    hits = (owner[i2t] == owner[::5, None]).any(axis=1), (t2i == owner[:, None]).any(axis=1)
    return [100.0 * float(hit.mean()) for hit in hits]

  return {"run": lambda: best() and None, "answer": answer}
