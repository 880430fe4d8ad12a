"""How long a user waits: for --help, and for the first step of a run whose programs were compiled
before.

The first step holds the step itself: a BiLSTM of 1,024 units computes for 0.7 s here, two linear
projections for 0.05.
"""

from xmr.bench.cases import OURS, Case, Goal


def cases(*, quick):
  """Returns the three cases."""
  here = "xmr.bench.startup:"
  sizes = (
    {"batch": 8, "words": 20, "dim": 16} if quick else {"batch": 128, "words": 8000, "dim": 1024}
  )
  linear = {"batch": 8, "words": 0, "dim": 16} if quick else {"batch": 512, "words": 0, "dim": 1024}
  return [
    Case(
      name="--help",
      contenders={OURS: here + "help_text", "bare python": here + "bare_python"},
      arguments={},
      goals=() if quick else (Goal("seconds", at_most=1.0),),
    ),
    *(
      Case(
        name=f"first step, {name}, B {given['batch']}",
        contenders={OURS: here + "warm", "cold": here + "cold"},
        arguments=given,
        goals=() if quick else (Goal("seconds", at_most=0.7),),
      )
      for name, given in (("linear", linear), ("BiLSTM", sizes))
    ),
  ]


def command(*arguments, **environment):
  """Runs Python with some arguments; returns its standard output."""
  import os
  import subprocess
  import sys

  done = subprocess.run(
    [sys.executable, *arguments],
    stdout=subprocess.PIPE,
    check=True,
    env={**os.environ, **environment},
  )
  return done.stdout.decode()


def help_text():
  """The whole command python -m xmr.main --help."""
  return {"run": lambda: command("-m", "xmr.main", "--help") and None}


def bare_python():
  """An interpreter that starts and ends: what no program goes below."""
  return {"run": lambda: command("-c", "pass") and None}


def warm(**sizes):
  """A process that has been here before: its first call of the training step, traced and read from
  the cache.
  """
  import tempfile

  folder = tempfile.TemporaryDirectory()

  def run():
    return float(command("-m", "xmr.bench.startup", folder.name, *map(str, sizes.values())))

  return {"run": run}


def cold(**sizes):
  """The same with an empty cache."""
  import tempfile

  def run():
    with tempfile.TemporaryDirectory() as folder:
      return float(command("-m", "xmr.bench.startup", folder, *map(str, sizes.values())))

  return {"run": run}


def first_step(folder, batch, words, dim):
  """Returns the seconds of the first step of IMC, cache and all: a BiLSTM on so many words, on 0
  linear on features.
  """
  import functools
  import time

  import jax
  import numpy as np

  from xmr import losses, models, parallel, train
  from xmr.config import base_config
  from xmr.training import optim

  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  config = base_config().unlock()
  config.model.dim = dim
  config.model.image.name = "linear"
  if not words:
    config.model.text.name = "linear"
  model = models.build(config.model, vocabulary_size=words)
  rng = np.random.default_rng(0)
  rows = {
    "image": rng.normal(size=(batch, 1280)).astype(np.float32),
    "image_id": np.arange(batch, dtype=np.int32),
    "text": rng.normal(size=(batch, 768)).astype(np.float32),
  }
  if words:
    rows["text"] = rng.integers(words, size=(batch, 30), dtype=np.int32)
    rows["text_length"] = rng.integers(8, 31, size=batch, dtype=np.int32)
  variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), rows))
  transform, _ = optim.make(
    config.optimizer, variables["params"], steps_per_epoch=200, total_steps=6000
  )
  mesh = parallel.mesh()
  step = jax.jit(
    functools.partial(train.train_step, model=model, transform=transform, loss=losses.get("imc")),
    donate_argnums=0,
    compiler_options=parallel.compiler_options(mesh),
  )
  state = train.create_train_state(variables, transform, mesh=mesh)
  rows = parallel.shard(mesh, rows)
  jax.block_until_ready((state.params, rows))
  begun = time.perf_counter()
  jax.block_until_ready(step(state, rows, None))
  return time.perf_counter() - begun


if __name__ == "__main__":
  import sys

  print(first_step(sys.argv[1], *map(int, sys.argv[2:])))
