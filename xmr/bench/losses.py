"""Losses, forward and backward, against PyTorch written as the papers describe them."""

from collections.abc import Callable

from xmr.bench.cases import OURS, Case, Goal

SIZES, QUICK_SIZES = ((512, 1024), (2048, 1024)), ((64, 128),)
BAND = {"lower": 0.05, "upper": 0.5}
# Matrix products that a loss cannot do without, in 2 B^2 D: scores forward; its gradient in both
# factors for SH, for MH none (two rows per query); the distances and their gradient for each
# modality of the cosine constraint.
PRODUCTS = {"sh": 3, "mh": 1, "imc_cosine": 1 + 2 * 2}
# L1: subtract, absolute value, add forward, for half of the pairs; compare and add, twice,
# backward: vector instructions, of which each takes the place of a fused multiply-add.
L1_INSTRUCTIONS = 3 / 2 + 4
L1_TEMPORARY_MB = 48


def cases(*, quick):
  """Returns the cases: three losses of products, and L1, at two batch sizes."""
  found = []
  for batch, dim in QUICK_SIZES if quick else SIZES:
    for loss in ("sh", "mh", "imc_cosine", "imc_l1"):
      l1 = loss == "imc_l1"
      times = 1 + 2 * L1_INSTRUCTIONS if l1 else PRODUCTS[loss]
      goals = [] if quick else [Goal("share", at_least=0.6), Goal("ratio/best", at_least=1)]
      if l1 and batch == 2048:
        goals.append(Goal("facts/temp_mb", at_most=L1_TEMPORARY_MB))
      found.append(
        Case(
          name=f"{loss} B {batch}",
          contenders={
            OURS: "xmr.bench.losses:ours",
            "torch": "xmr.bench.losses:in_torch",
            "torch.compile": "xmr.bench.losses:in_torch_compile",
          },
          arguments={"loss": loss, "batch": batch, "dim": dim},
          products=times * 2.0 * batch**2 * dim,
          goals=tuple(goals),
        )
      )
  return found


def embeddings(batch, dim):
  """Returns (image, text) [B, D] float32 with unit rows: texts near their images, images in groups
  of eight.
  """
  import numpy as np

  rng = np.random.default_rng(0)
  groups = rng.normal(size=(-(-batch // 8), dim)).repeat(8, axis=0)[:batch]
  image = groups + 0.7 * rng.normal(size=(batch, dim))
  text = image + 0.7 * rng.normal(size=(batch, dim))
  return [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text)]


def ours(*, loss, batch, dim):
  """Value and gradient of a loss of xmr.losses, compiled as a training step; facts: temporary
  memory that XLA plans, in MB.
  """
  import functools

  import jax

  from xmr import losses, parallel

  function: Callable = {
    "sh": losses.sum_of_hinges,
    "mh": losses.max_of_hinges,
    "imc_cosine": functools.partial(losses.imc, distance="cosine", **BAND),
    "imc_l1": functools.partial(losses.imc, distance="l1", **BAND),
  }[loss]
  image, text = jax.device_put(embeddings(batch, dim))
  gradient = jax.jit(
    jax.value_and_grad(lambda image, text: function(image, text)[0], argnums=(0, 1)),
    compiler_options=parallel.compiler_options(parallel.mesh()),
  )
  compiled = gradient.lower(image, text).compile()
  memory = compiled.memory_analysis()

  def answer():
    value, (d_image, d_text) = compiled(image, text)
    return [float(value), *(float((d * d).sum()) ** 0.5 for d in (d_image, d_text))]

  return {
    "run": lambda: jax.block_until_ready(compiled(image, text)),
    "answer": answer,
    "facts": {"temp_mb": round(memory.temp_size_in_bytes / 1e6, 1)} if memory else {},
  }


def in_torch_compile(*, loss, batch, dim):
  """The same by torch.compile, which fuses what is between the products."""
  return in_torch(loss=loss, batch=batch, dim=dim, compiled=True)


def in_torch(*, loss, batch, dim, compiled=False):
  """The same loss in plain PyTorch; L1 through torch.cdist(p=1)."""
  import shutil

  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  image, text = (torch.from_numpy(x).to(device).requires_grad_() for x in embeddings(batch, dim))
  own = torch.eye(batch, dtype=torch.bool, device=device)

  def hinges(image, text, hardest):
    scores = image @ text.T
    positive = scores.diagonal()
    i2t = (0.2 + scores - positive[:, None]).clamp(min=0).masked_fill(own, 0)
    t2i = (0.2 + scores - positive[None, :]).clamp(min=0).masked_fill(own, 0)
    if hardest:
      i2t, t2i = i2t.max(1)[0], t2i.max(0)[0]
    return i2t.sum() + t2i.sum()

  def intra_cosine(x):
    scores = x @ x.T
    kept = (scores > BAND["upper"]) & (scores < 1 - BAND["lower"]) & ~own
    return scores[kept].sum() / batch

  def intra_l1(x):
    distances = torch.nn.functional.normalize(torch.cdist(x, x, p=1), dim=1)
    ordered = distances[0].sort()[0]
    low, high = (ordered[min(round(BAND[name] * batch), batch - 1)] for name in ("lower", "upper"))
    return distances[(distances > low) & (distances < high)].sum() / batch

  def value():
    if loss in ("sh", "mh"):
      return hinges(image, text, loss == "mh")
    intra = intra_cosine if loss == "imc_cosine" else intra_l1
    return hinges(image, text, True) + intra(image) + intra(text)

  if compiled:
    if device == "cpu" and not shutil.which("c++"):
      raise ModuleNotFoundError("torch.compile wants a C++ compiler", name="torch")
    value = torch.compile(value)

  def run():
    image.grad = text.grad = None
    total = value()
    total.backward()
    if device == "cuda":
      torch.cuda.synchronize()
    return total

  def answer():
    total = run()
    gradients = [x.grad for x in (image, text) if x.grad is not None]
    return [float(total), *(float(x.norm()) for x in gradients)]

  return {"run": run, "answer": answer}
