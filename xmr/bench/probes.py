"""What the machine gives right now: the rate of float32 products, and of copying memory.

A limit is only as good as its probe: every library at hand tries several shapes, in every round,
and the best rate of a round counts.
"""

import functools

GEMM = (1024, 2048)  # rows and columns on a CPU
COPY = 1 << 27  # bytes on a CPU: four times the largest usual cache
ON_DEVICE = 8  # times more of both on an accelerator
HERE = "xmr.bench.probes:"


def probes(*, quick):
  """Returns [(kind, "module:function", arguments)]: who tries "gemm" and who tries "copy"."""
  on_host = backend() == "cpu"
  scale = 1 if on_host else ON_DEVICE
  sizes = (256,) if quick else tuple(scale * size for size in GEMM)
  # Beside an accelerator the host's libraries are no limit.
  libraries = ("numpy", "jax", "torch") if on_host else ("jax",)
  found = [("gemm", f"{HERE}gemm_{name}", {"size": n}) for name in libraries for n in sizes]
  size = 1 << 18 if quick else scale * COPY
  copiers = ("numpy", "torch") if on_host else ("jax",)
  return found + [("copy", f"{HERE}copy_{name}", {"size": size}) for name in copiers]


def backend():
  """Returns JAX's default platform; "cpu" without importing JAX where it has no other."""
  import importlib.util

  if not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")):
    return "cpu"
  import jax

  return jax.default_backend()


def gemm_numpy(*, size):
  """A product of two square matrices by NumPy's BLAS."""
  import numpy as np

  x, y = _matrices(size)
  return _product(size, functools.partial(np.matmul, x, y, out=np.empty_like(x)))


def gemm_torch(*, size):
  """The same by PyTorch, which calls oneDNN or MKL."""
  import torch

  x, y = map(torch.from_numpy, _matrices(size))
  return _product(size, functools.partial(torch.mm, x, y, out=torch.empty_like(x)))


def gemm_jax(*, size):
  """The same by XLA, on JAX's default device."""
  import jax

  x, y = jax.device_put(_matrices(size))
  product = jax.jit(functools.partial(jax.numpy.matmul, precision="highest"))
  return _product(size, lambda: product(x, y).block_until_ready())


def copy_numpy(*, size):
  """A copy of `size` bytes, each core a part; what is read and what is written both count."""
  import concurrent.futures

  import numpy as np

  x, out, cores = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32), _cores()
  parts = list(zip(np.array_split(out, cores), np.array_split(x, cores), strict=True))
  pool = concurrent.futures.ThreadPoolExecutor(cores)
  return _copied(size, lambda: list(pool.map(lambda part: np.copyto(*part), parts)))


def copy_torch(*, size):
  """The same by PyTorch."""
  import torch

  x, out = torch.ones(size // 4), torch.empty(size // 4)
  return _copied(size, lambda: out.copy_(x))


def copy_jax(*, size):
  """The same by XLA, on JAX's default device: x + 1."""
  import jax

  x = jax.numpy.ones(size // 4, jax.numpy.float32)
  plus = jax.jit(lambda x: x + 1)
  return _copied(size, lambda: plus(x).block_until_ready())


def _matrices(size):
  import numpy as np

  rng = np.random.default_rng(0)
  return [rng.normal(size=(size, size)).astype(np.float32) for _ in range(2)]


def _product(size, run):
  return {"run": run, "facts": {"amount": 2.0 * size**3}}


def _copied(size, run):
  return {"run": run, "facts": {"amount": 2.0 * size}}


def _cores():
  import os

  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
