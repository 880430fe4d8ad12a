"""Training batches: random crops of JPEG pictures with words, and features beside the step that
reads them.
"""

from xmr.bench.cases import OURS, Case, Goal

WORKERS = 2
PREFETCH = 2
# Batches that may lie ready or half made when a turn begins, while the other side had the machine;
# and those that are timed.
READY = WORKERS * (PREFETCH + 2)
TIMED = 4 * WORKERS


def cases(*, quick):
  """Returns two cases: pixels, and features at the speed of a training loop."""
  here = "xmr.bench.data:"
  pixels = (
    {"images": 16, "batch": 8, "size": 32} if quick else {"images": 512, "batch": 128, "size": 224}
  )
  features = (
    {"images": 60, "batch": 32, "image": 48, "text": 32, "dim": 64}
    if quick
    else {"images": 8000, "batch": 512, "image": 1280, "text": 768, "dim": 1024}
  )
  return [
    Case(
      name=f"{pixels['size']}-px crops, words, {WORKERS} workers",
      contenders={OURS: here + "crops", "torch": here + "crops_in_torch"},
      arguments=pixels,
      items=pixels["batch"],
      unit="images",
      goals=() if quick else (Goal("rate", at_least=2000),),
    ),
    Case(
      name=f"features, B {features['batch']}, with the step",
      contenders={OURS: here + "with_step"},
      arguments=features,
      items=features["batch"],
      unit="pairs",
      goals=() if quick else (Goal("facts/waited", at_most=0.02),),
    ),
  ]


def pictures(images, side=256):
  """Returns `images` JPEG files of side x side pixels as bytes: smooth colours with grain, some 20
  KB each.
  """
  import io

  import numpy as np
  from PIL import Image

  rng, files = np.random.default_rng(0), []
  for _ in range(images):
    smooth = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).resize(
      (side, side), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(smooth, np.int16) + rng.integers(-12, 13, size=(side, side, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    files.append(file.getvalue())
  return files


def split(images, **fields):
  """Returns a Split of so many images with five captions each."""
  import numpy as np

  from xmr.data.split import Split

  texts = [f"a dog number {i} runs over the green grass" for i in range(5 * images)]
  return Split(
    "train",
    np.arange(images, dtype=np.int32),
    np.arange(5 * images, dtype=np.int32),
    (np.arange(5 * images) // 5).astype(np.int32),
    [f"{i}.jpg" for i in range(images)],
    texts,
    [text.split() for text in texts],
    **fields,
  )


def crops(*, images, batch, size):
  """pipeline.train_batches in worker processes."""
  from xmr.data import build_vocabulary, pipeline

  made = split(images, pixels=pictures(images))
  vocabulary = build_vocabulary({"train": made}, min_count=1)
  batches = pipeline.train_batches(
    made,
    batch_size=batch,
    seed=0,
    vocabulary=vocabulary,
    image_size=size,
    workers=WORKERS,
    prefetch=PREFETCH,
  )
  return {"run": lambda: seconds_each(batches)}


def seconds_each(batches):
  """Returns the seconds that a batch takes its workers, after those that were ready."""
  import time

  for _ in range(READY):
    next(batches)
  begun = time.perf_counter()
  for _ in range(TIMED):
    next(batches)
  return (time.perf_counter() - begun) / TIMED


def crops_in_torch(*, images, batch, size):
  """A torch DataLoader whose workers decode, crop and flip with Pillow."""
  import io

  import numpy as np
  import torch
  from PIL import Image

  class Crops(torch.utils.data.Dataset):
    def __init__(self):
      self.files = pictures(images)

    def __len__(self):
      return 1 << 40

    def __getitem__(self, index):
      rng = np.random.default_rng(index)
      image = Image.open(io.BytesIO(self.files[index % images])).convert("RGB")
      area, ratio = (
        rng.uniform(0.08, 1) * image.width * image.height,
        np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))),
      )
      sides = (ratio, image.width), (1 / ratio, image.height)
      width, height = (min(int(round((area * share) ** 0.5)), side) for share, side in sides)
      x = int(rng.integers(image.width - width + 1))
      y = int(rng.integers(image.height - height + 1))
      box = (x, y, x + width, y + height)
      image = image.resize((size, size), Image.Resampling.BILINEAR, box)
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image
      return torch.from_numpy(np.asarray(image).copy()), torch.zeros(12, dtype=torch.int32)

  loader = torch.utils.data.DataLoader(
    Crops(), batch, num_workers=WORKERS, prefetch_factor=PREFETCH, shuffle=False
  )
  batches = iter(loader)
  return {"run": lambda: seconds_each(batches)}


def with_step(*, images, batch, image, text, dim):
  """The training loop of `bench step` fed by the pipeline; facts: the share of the time that it
  waits for batches.
  """
  import time

  import jax
  import numpy as np

  from xmr import parallel, train
  from xmr.bench import step as step_bench
  from xmr.data import pipeline

  rng = np.random.default_rng(0)
  made = split(
    images,
    image_features=rng.standard_normal((images, image), dtype=np.float32),
    text_features=rng.standard_normal((5 * images, text), dtype=np.float32),
  )
  batches = pipeline.train_batches(made, batch_size=batch, seed=0)
  _, kernels = step_bench.start(batch, image, text, dim)
  step, variables, transform, mesh = step_bench.built(next(batches), kernels, dim)
  state = train.create_train_state(variables, transform, mesh=mesh)
  facts, waits, total = {}, 0.0, 0.0

  def run():
    nonlocal state, waits, total
    begun = time.perf_counter()
    rows = next(batches)
    waited = time.perf_counter() - begun
    state, terms = step(state, parallel.shard(mesh, rows), None)
    jax.block_until_ready(terms)
    waits, total = waits + waited, total + time.perf_counter() - begun
    return None

  for _ in range(3):
    run()
  waits = total = 0.0
  for _ in range(20):
    run()
  facts["waited"] = round(waits / total, 4)
  return {"run": run, "facts": facts}
