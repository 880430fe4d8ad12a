"""What the machine gives right now: the rate of float32 products, and of copying memory."""

GEMM = 1024  # rows and columns on a CPU
COPY = 1 << 27  # bytes on a CPU: four times the largest usual cache
ON_DEVICE = 8  # times more of both on an accelerator


def backend():
  """Returns the name of JAX's default platform; "cpu" without importing JAX where it has no
  other.
  """
  import importlib.util

  if not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")):
    return "cpu"
  import jax

  return jax.default_backend()


def gemm(*, size=None):
  """A product of two square matrices, in NumPy on a CPU, in JAX elsewhere."""
  import numpy as np

  on_host = backend() == "cpu"
  size = size or (GEMM if on_host else GEMM * ON_DEVICE)
  x, y = (
    np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32) for seed in (0, 1)
  )
  if on_host:
    out = np.empty_like(x)
    run = lambda: np.matmul(x, y, out=out)  # noqa: E731
  else:
    import jax

    x, y = jax.device_put((x, y))
    product = jax.jit(lambda x, y: jax.numpy.matmul(x, y, precision="highest"))
    run = lambda: product(x, y).block_until_ready()  # noqa: E731
  return {"run": run, "facts": {"amount": 2.0 * size**3}}


def copy(*, size=None):
  """A copy of an array, in NumPy on a CPU, in JAX elsewhere; what is read and what is written both
  count.
  """
  import numpy as np

  on_host = backend() == "cpu"
  size = 4 * size**2 if size else COPY if on_host else COPY * ON_DEVICE
  x = np.ones(size // 4, np.float32)
  if on_host:
    import concurrent.futures
    import os

    out, workers = np.empty_like(x), len(os.sched_getaffinity(0))
    parts = list(zip(np.array_split(out, workers), np.array_split(x, workers), strict=True))
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    run = lambda: list(pool.map(lambda part: np.copyto(*part), parts))  # noqa: E731
  else:
    import jax

    x = jax.device_put(x)
    plus = jax.jit(lambda x: x + 1)
    run = lambda: plus(x).block_until_ready()  # noqa: E731
  return {"run": run, "facts": {"amount": 2.0 * size}}
