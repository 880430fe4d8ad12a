"""A whole training step: linear encoders of features, hardest negatives, clipping, Adam."""

from xmr.bench.cases import OURS, Case, Goal

STEPS = 4  # between two waits: training reads its terms every few steps
CLIP, RATE = 2.0, 2e-4


def cases(*, quick):
  """Returns the one case: features of 1,280 and 768 into 1,024 units, B 512."""
  sizes = {"batch": 512, "image": 1280, "text": 768, "dim": 1024}
  if quick:
    sizes = {"batch": 32, "image": 48, "text": 32, "dim": 64}
  batch, features, dim = sizes["batch"], sizes["image"] + sizes["text"], sizes["dim"]
  # Projections forward and their weights' gradient; scores. Adam reads p, m, v, g and writes p, m,
  # v; g is written once and read once more, for its norm.
  products = 2 * (2.0 * batch * features * dim) + 2.0 * batch**2 * dim
  traffic = 9 * 4.0 * features * dim
  here = "xmr.bench.step:"
  return [
    Case(
      name=f"{sizes['image']}/{sizes['text']} -> {dim}, B {batch}, {STEPS} steps",
      contenders={OURS: here + "ours", "torch": here + "in_torch"},
      arguments=sizes,
      products=STEPS * products,
      traffic=STEPS * traffic,
      items=STEPS * batch,
      unit="pairs",
      goals=() if quick else (Goal("share", at_least=0.6), Goal("ratio/best", at_least=1)),
    )
  ]


def start(batch, image, text, dim):
  """Returns (batches, {"image": kernel [F, D], "text": kernel}): the same for all contenders."""
  import numpy as np

  rng = np.random.default_rng(0)
  kernels = {
    side: rng.normal(size=(width, dim)).astype(np.float32) * width**-0.5
    for side, width in (("image", image), ("text", text))
  }
  batches = [
    {
      "image": rng.normal(size=(batch, image)).astype(np.float32),
      "text": rng.normal(size=(batch, text)).astype(np.float32),
      "image_id": np.arange(batch, dtype=np.int32),
      "text_id": np.arange(batch, dtype=np.int32),
    }
    for _ in range(STEPS)
  ]
  return batches, kernels


def built(rows, kernels, dim):
  """Returns (step, variables, transform, mesh): train.train_step as `fit` runs it, jitted, the
  state donated.
  """
  import functools

  import jax

  from xmr import losses, models, parallel, train
  from xmr.config import base_config
  from xmr.training import optim

  config = base_config().unlock()
  config.model.dim = dim
  config.model.image.name = config.model.text.name = "linear"
  config.model.image.input_norm = False
  model = models.build(config.model)
  variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), rows))
  for side, kernel in kernels.items():
    variables["params"][f"{side}_encoder"]["projection"]["kernel"] = kernel
  transform, _ = optim.make(
    config.optimizer, variables["params"], steps_per_epoch=1000, total_steps=30000
  )
  step = functools.partial(
    train.train_step, model=model, transform=transform, loss=losses.get("max_of_hinges")
  )
  mesh = parallel.mesh()
  options = parallel.compiler_options(mesh)
  return jax.jit(step, donate_argnums=0, compiler_options=options), variables, transform, mesh


def ours(*, batch, image, text, dim):
  """The step of a run, with one wait for several steps."""
  import jax

  from xmr import parallel, train

  batches, kernels = start(batch, image, text, dim)
  step, variables, transform, mesh = built(batches[0], kernels, dim)
  state = train.create_train_state(variables, transform, mesh=mesh)

  def run():
    nonlocal state
    for rows in batches:
      state, terms = step(state, parallel.shard(mesh, rows), None)
    return jax.block_until_ready(terms) and None

  def answer():
    fresh = train.create_train_state(variables, transform, mesh=mesh)
    found = []
    for rows in batches:
      fresh, terms = step(fresh, parallel.shard(mesh, rows), None)
      found.append(float(terms["loss"]))
    return found

  return {"run": run, "answer": answer}


def in_torch(*, batch, image, text, dim):
  """The same step in plain PyTorch."""
  import torch

  batches, kernels = start(batch, image, text, dim)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  own = torch.eye(batch, dtype=torch.bool, device=device)

  def fresh():
    layers = {side: torch.nn.Linear(kernel.shape[0], dim) for side, kernel in kernels.items()}
    for side, layer in layers.items():
      with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernels[side].T))
        layer.bias.zero_()
      layer.to(device)
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    return layers, parameters, torch.optim.Adam(parameters, lr=RATE)

  def step(state, rows):
    layers, parameters, optimizer = state
    optimizer.zero_grad()
    encoded = (layers[side](torch.from_numpy(rows[side]).to(device)) for side in ("image", "text"))
    x, y = (torch.nn.functional.normalize(z, dim=1) for z in encoded)
    scores = x @ y.T
    positive = scores.diagonal()
    i2t = (0.2 + scores - positive[:, None]).clamp(min=0).masked_fill(own, 0)
    t2i = (0.2 + scores - positive[None, :]).clamp(min=0).masked_fill(own, 0)
    loss = i2t.max(1)[0].sum() + t2i.max(0)[0].sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    return loss

  state = fresh()

  def run():
    for rows in batches:
      step(state, rows)
    if device == "cuda":
      torch.cuda.synchronize()

  def answer():
    begun = fresh()
    return [float(step(begun, rows)) for rows in batches]

  return {"run": run, "answer": answer}
