"""The hardest negatives of a batch among the whole training set, encoded with the current
parameters, exact.
"""

from xmr.bench.cases import OURS, Case, Goal

# rows at a time in PyTorch: of 1,024, 2,048 and 4,096 its fastest; ours takes the default of the
# config
BLOCK = 1024


def cases(*, quick):
  """Returns the one case: 29,000 images and 145,000 captions as features of 1,280 and 768, B
  512.
  """
  sizes = (
    {"images": 400, "batch": 32, "image": 48, "text": 32, "dim": 40}
    if quick
    else {"images": 29000, "batch": 512, "image": 1280, "text": 768, "dim": 1024}
  )
  here = "xmr.bench.mining:"
  return [
    Case(
      name=f"{sizes['images']} + {5 * sizes['images']}, B {sizes['batch']}",
      contenders={OURS: here + "ours", "torch": here + "in_torch"},
      arguments=sizes,
      products=sum(
        least_products(count, sizes[side], sizes["dim"], sizes["batch"])
        for side, count in (("image", sizes["images"]), ("text", 5 * sizes["images"]))
      ),
      goals=()
      if quick
      else (
        Goal("share", at_least=0.6),
        Goal("ratio/best", at_least=1),
        Goal("extra_mb", at_most=60),
      ),
    )
  ]


def least_products(rows, features, dim, batch):
  """Operations of the cheaper of two ways to score rows: encode and multiply, or in the space of
  features with the norm from a triangular factor of the projection."""
  small = min(features, dim)
  encoded = features * dim + dim * batch
  in_features = features * batch + features * small - small * small / 2
  return 2.0 * rows * min(encoded, in_features)


def start(images, batch, image, text, dim):
  """Returns (features, kernels, owner [T], captions of the batch [B]): the same for all
  contenders.
  """
  import numpy as np

  rng = np.random.default_rng(0)
  rows = {"image": images, "text": 5 * images}
  width = {"image": image, "text": text}
  features = {
    side: rng.standard_normal(size=(rows[side], width[side]), dtype=np.float32) for side in rows
  }
  kernels = {
    side: rng.standard_normal(size=(width[side], dim), dtype=np.float32) * width[side] ** -0.5
    for side in rows
  }
  owner = (np.arange(5 * images) // 5).astype(np.int32)
  return features, kernels, owner, np.sort(rng.choice(images, batch, replace=False)) * 5


def ours(*, images, batch, image, text, dim):
  """mining.in_training_set, compiled, with the negatives' embeddings that it returns."""
  import types

  import jax
  import numpy as np

  from xmr import losses, mining, models, parallel
  from xmr.config import base_config
  from xmr.data.split import Split

  features, kernels, owner, captions = start(images, batch, image, text, dim)
  config = base_config().unlock()
  config.model.dim, config.batch_size = dim, batch
  config.mining.scope, config.loss.name = "train", "hard_negative"
  for section in (config.model.image, config.model.text):
    section.name, section.bias, section.input_norm = "linear", False, False
  split = Split(
    "train",
    np.arange(images, dtype=np.int32),
    np.arange(len(owner), dtype=np.int32),
    owner,
    [""] * images,
    [""] * len(owner),
    [[]] * len(owner),
    image_features=features["image"],
    text_features=features["text"],
  )
  model = models.build(config.model)
  variables = {
    "params": {
      f"{side}_encoder": {"projection": {"kernel": kernel}} for side, kernel in kernels.items()
    }
  }
  mesh = parallel.mesh()
  miner, pool, bank = mining.make(
    types.SimpleNamespace(
      config=config,
      splits={"train": split},
      mesh=mesh,
      model=model,
      vocabulary=None,
      length=None,
      loss=losses.get("hard_negative"),
    )
  )
  assert miner is not None  # The loss takes negatives.
  variables = parallel.replicate(mesh, variables)
  rows = parallel.shard(
    mesh,
    {
      "image": features["image"][owner[captions]],
      "text": features["text"][captions],
      "image_id": owner[captions],
      "text_id": captions.astype(np.int32),
    },
  )

  @jax.jit
  def mine(variables, rows, pool):
    x, y = model.apply(variables, rows)
    found, _ = miner(
      variables, rows, {"image": x, "text": y}, pool, bank, step=0, key=jax.random.key(0)
    )
    return (found["image_negative"] * y).sum(axis=1), (found["text_negative"] * x).sum(axis=1)

  compiled = mine.lower(variables, rows, pool).compile()
  memory = compiled.memory_analysis()
  return {
    "run": lambda: jax.block_until_ready(compiled(variables, rows, pool)) and None,
    "answer": lambda: np.concatenate([np.asarray(x) for x in compiled(variables, rows, pool)]),
    "facts": {"temp_mb": round(memory.temp_size_in_bytes / 1e6, 1)} if memory else {},
  }


def in_torch(*, images, batch, image, text, dim):
  """The same in plain PyTorch: encode a block, score it, keep the best."""
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  features, kernels, owner, captions = start(images, batch, image, text, dim)
  features, kernels = (
    {side: torch.from_numpy(x).to(device) for side, x in tree.items()}
    for tree in (features, kernels)
  )
  owners = {
    "text": torch.from_numpy(owner).to(device),
    "image": torch.arange(images, device=device),
  }
  captions = torch.from_numpy(captions).to(device)
  own = owners["text"][captions]

  def encode(side, rows):
    return torch.nn.functional.normalize(rows @ kernels[side], dim=1)

  def hardest(side, query):
    best, index = (
      torch.full((batch,), -torch.inf, device=device),
      torch.zeros(batch, dtype=torch.long, device=device),
    )
    for begin in range(0, len(owners[side]), BLOCK):
      scores = query @ encode(side, features[side][begin : begin + BLOCK]).T
      scores.masked_fill_(own[:, None] == owners[side][begin : begin + BLOCK][None, :], -torch.inf)
      value, place = scores.max(1)
      better = value > best
      best, index = torch.where(better, value, best), torch.where(better, place + begin, index)
    return encode(side, features[side][index])

  @torch.no_grad()
  def mine():
    x, y = encode("image", features["image"][own]), encode("text", features["text"][captions])
    return (hardest("image", y) * y).sum(1), (hardest("text", x) * x).sum(1)

  def run():
    mine()
    if device == "cuda":
      torch.cuda.synchronize()

  return {"run": run, "answer": lambda: torch.cat(mine()).cpu().numpy()}
