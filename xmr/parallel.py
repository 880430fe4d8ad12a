"""Devices and processes: the one-axis mesh, and how host arrays become global arrays and return."""

import contextlib
import ipaddress
import os
import re
import socket
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xmr.errors import UserError

DATA = "data"
SILENCE = 30  # seconds without a sign of life after which a process counts as dead
# What gloo, NCCL and the coordination service say when another process is gone.
LOST = re.compile(
  r"gloo|nccl|coordination|heartbeat|barrier|unavailable|aborted|deadline_exceeded", re.I
)
ROW_UNIT = 64  # row counts are rounded up to it, so that a checkpoint fits 1, 2, 4 ... devices


def initialize():
  """Joins the other processes of the run where the environment names them (`members`); else does
  nothing.

  Raises:
    UserError: as members; no answer from the coordinator.
  """
  found = members(os.environ)
  if found is None:
    if os.environ.get("XMR_DISTRIBUTED") == "auto":
      jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE)
    return
  coordinator, count, index, local = found
  print(f"xmr: process {index}/{count} joins {coordinator}", file=sys.stderr, flush=True)
  # Ours stops on SIGTERM by a vote; JAX's service would only swallow the signal.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    coordinator,
    count,
    index,
    local_device_ids=local,
    cluster_detection_method="deactivate",
    heartbeat_timeout_seconds=SILENCE,
    coordinator_bind_address=bind_address(coordinator) if index == 0 else None,
  )


def bind_address(coordinator):
  """Returns where the coordinator listens: only at its own address, as its port has no
  authentication; or None, all interfaces, if that address is not one of this machine.

  Args:
    coordinator: "host:port", as the other processes reach it.
  """
  host, _, port = coordinator.rpartition(":")
  host = host.strip("[]")
  with contextlib.suppress(OSError):
    for family, _, _, _, (address, *_) in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
      # A name that stands for 127.0.1.1 in /etc/hosts is reached by others at another address.
      if ipaddress.ip_address(address).is_loopback and host not in (address, "localhost"):
        continue
      with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.bind((address, 0))
        return f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"
  print(
    f"xmr: warning: {host} is no address of this machine; the coordinator listens on all its "
    "interfaces, without authentication",
    file=sys.stderr,
  )
  return None


def members(environment):
  """Reads the processes of the run from `XMR_COORDINATOR`, `XMR_PROCESSES` and `XMR_PROCESS` (set
  by launch/), or from a Slurm step.

  Args:
    environment: dict of strings.
  Returns:
    (coordinator "host:port", number of processes, index of this one, its GPUs or None for all that
    it sees), or None.
  Raises:
    UserError: a variable is missing, no number, or out of range.
  """
  get = environment.get
  if get("XMR_COORDINATOR"):
    coordinator, names = get("XMR_COORDINATOR"), ("XMR_PROCESSES", "XMR_PROCESS")
  elif get("SLURM_STEP_NODELIST") and get("SLURM_PROCID"):
    # First host of node001 · node001,host2 · node[001-004,7],host2; a port below those that the
    # kernel hands out.
    host = re.sub(r"\[(\w+).*", r"\1", get("SLURM_STEP_NODELIST")).split(",")[0]
    port = get("XMR_PORT") or 20000 + int(get("SLURM_JOB_ID") or 0) % 10000
    coordinator, names = f"{host}:{port}", ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if names[0] not in environment:
      names = "SLURM_NTASKS", "SLURM_PROCID"
  else:
    return None
  try:
    count, index = (int(environment[name]) for name in names)
  except (KeyError, ValueError):
    found = ", ".join(f"{name} is {get(name)!r}" for name in names)
    raise UserError(f"the coordinator is {coordinator} but {found}; expected two numbers") from None
  if not 0 <= index < count:
    raise UserError(f"{names[1]} is {index}; expected 0 to {count - 1}, as {names[0]} is {count}")
  if count == 1 and not get("XMR_COORDINATOR"):
    return None
  several = len(get("CUDA_VISIBLE_DEVICES", "").split(",")) > 1
  local = [int(get("SLURM_LOCALID"))] if several and get("SLURM_LOCALID") else None
  return coordinator, count, index, local


@contextlib.contextmanager
def together():
  """Ends this process at once if it fails in a run of several, so that no other waits for it.

  A failure that comes from the loss of another process becomes one line on standard error and
  status 1.
  """
  try:
    yield
  except BaseException as error:
    if jax.process_count() == 1:
      raise
    text = " ".join(str(error).split())
    # XLA's failures come as several kinds of errors: a lost collective is a ValueError where gloo
    # calls it unknown.
    if isinstance(error, (RuntimeError, ValueError)) and LOST.search(text):
      print(
        f"xmr: error: process {jax.process_index()}/{jax.process_count()} lost another process "
        "of this run; the same command "
        f"goes on from the last checkpoint ({text[:200]})",
        file=sys.stderr,
      )
    elif not isinstance(error, SystemExit):
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: it would wait for the others at JAX's barrier, and they for us in a collective.
    os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def mesh(devices=None):
  """Returns a one-axis mesh over all devices (or the given ones); arrays on it are placed by the
  compiler (Auto).
  """
  devices = np.asarray(jax.devices() if devices is None else devices)
  return Mesh(devices, (DATA,), axis_types=(AxisType.Auto,))


def on_host(devices):
  """Says whether devices use the host's memory, so that arrays gain nothing by staying off it."""
  return devices[0].platform == "cpu"


def host_memory():
  """Returns the bytes of this machine's memory."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_of(mesh):
  """Returns the bytes of memory of one device of a mesh, or None where the device does not say;
  devices that use the host's memory share it.
  """
  devices = mesh.local_mesh.devices.reshape(-1)
  if on_host(devices):
    return host_memory() // len(devices)
  return (devices[0].memory_stats() or {}).get("bytes_limit")


def compiler_options(mesh):
  """Returns what `jit` of a training step is compiled with: {name: value}, for a mesh's devices.

  On a CPU vectors of 512 bits, where it has them: XLA's own choice of 256 costs the L1 distance up
  to a third of its speed.
  """
  return {"xla_cpu_prefer_vector_width": 512} if mesh.devices.flat[0].platform == "cpu" else {}


def replicated(mesh):
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def sharded(mesh):
  """Returns the sharding of an array whose first axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def replicate(mesh, tree):
  """Puts a tree of host arrays, the same in every process, on all devices."""
  sharding = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i, x=x: np.asarray(x)[i]),
    tree,
  )


def split(mesh, shape):
  """Returns the sharding of a parameter that is split over the devices: by its largest axis that
  divides evenly; whole where there is none.
  """
  axes = [axis for axis, size in enumerate(shape) if size and size % mesh.size == 0]
  if not axes:
    return replicated(mesh)
  longest = max(axes, key=lambda axis: shape[axis])
  return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA))


def split_over(mesh, tree):
  """Puts a tree of host arrays, the same in every process, on the devices in parts (`split`)."""

  def placed(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, split(mesh, x.shape), lambda index: x[index])

  return jax.tree.map(placed, tree)


def kept_split(mesh, tree):
  """Returns a tree of traced arrays with the placement of `split`."""
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, split(mesh, x.shape)), tree)


def gathered(mesh, tree):
  """Returns a tree of traced arrays whole on every device; their gradient is summed into parts."""

  @jax.custom_vjp
  def whole(tree):
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))

  whole.defvjp(lambda tree: (whole(tree), None), lambda _, found: (kept_split(mesh, found),))
  return whole(tree)


def whole(mesh, tree):
  """Returns a tree of arrays on the devices with every one of them whole on each."""
  return jax.device_put(tree, replicated(mesh))


def shard(mesh, batch):
  """Makes global arrays of a process's own rows.

  Args:
    mesh: of mesh().
    batch: dict of NumPy arrays [B / processes, ...]; process p holds rows p B / P to (p + 1) B / P.
  Returns:
    The dict of global arrays [B, ...], split over the devices.
  """
  sharding = sharded(mesh)
  return {
    key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
  }


def shard_rows(mesh, array, *, fill=0):
  """Puts the rows of a host array, the same in every process, on the devices in equal parts, padded
  at the end.

  Args:
    mesh: of mesh().
    array: [N, ...] NumPy, memory-mapped or not: only a device's part is read.  fill: value of
      padded rows.
  Returns:
    [N', ...] global array, N' the next multiple of ROW_UNIT and of the number of devices.
  """
  unit = np.lcm(ROW_UNIT, mesh.size)
  shape = (int(-(-len(array) // unit) * unit), *np.shape(array)[1:])

  def part(index):
    start, stop, _ = index[0].indices(shape[0])
    rows = np.asarray(array[start : min(stop, len(array))])
    return np.concatenate([rows, np.full((stop - start - len(rows), *shape[1:]), fill, rows.dtype)])

  return jax.make_array_from_callback(shape, sharded(mesh), part)


def zeros(mesh, shape, dtype):
  """Returns zeros [N, ...] on the devices, in equal parts of rows."""
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharded(mesh))()


def per_device(mesh, function, rows, shared):
  """Calls function(rows, shared, first) on every device with the rows that it holds.

  Args:
    mesh: of mesh().
    function: of this device's part of rows, of shared, and of the number of its first row ([]
      int32).
    rows: tree of [N', ...] arrays, split over the devices.  shared: tree of arrays that every
      device gets whole.
  Returns:
    The tree of results, each with a leading axis of devices, in the order of the rows.
  """

  def local(rows, shared):
    first = jax.lax.axis_index(DATA) * len(jax.tree.leaves(rows)[0])
    return jax.tree.map(lambda x: jnp.expand_dims(x, 0), function(rows, shared, first))

  split, whole = PartitionSpec(DATA), PartitionSpec()
  return jax.shard_map(local, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False)(
    rows, shared
  )


def over_rows(mesh, function, **options):
  """Returns a function of global arrays that calls `function` on every device with the rows that it
  holds.

  Args:
    mesh: of mesh().
    function: (image, text, image_id, *, axis_name, **scalars) -> (loss, terms), the same on all
      devices: a loss in ring form.  options: more keyword arguments of it.
  Returns:
    function of (image [B, D], text [B, D], image_id [B] or None, **scalars: [] each) -> (loss,
    terms).
  """

  def whole(image, text, image_id=None, **scalars):
    rows = {"image": image, "text": text, "image_id": image_id}
    local = jax.shard_map(
      lambda rows, scalars: function(**rows, **scalars, **options, axis_name=DATA),
      mesh=mesh,
      in_specs=(PartitionSpec(DATA), PartitionSpec()),
      out_specs=PartitionSpec(),
    )
    return local(rows, scalars)

  return whole


def every_row(mesh, tree, gather):
  """Returns a tree of arrays [B, ...], split over the devices, with all rows on each; without a
  gradient.

  Args:
    mesh: of mesh().  tree: the arrays.
    gather: function of the rows of a device, [b, ...], and the name of the axis, that returns all.
  """
  gathered = jax.shard_map(
    lambda tree: gather(tree, DATA),
    mesh=mesh,
    in_specs=PartitionSpec(DATA),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  return gathered(tree)


def gather(array):
  """Returns a global array as NumPy, whole, in every process."""
  if array.is_fully_addressable:
    return np.asarray(array)
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_batch(mesh, size, *, name):
  """Raises UserError where a batch does not split evenly over the devices of a mesh."""
  if size % mesh.size:
    raise UserError(f"config.{name} is {size}; expected a multiple of the {mesh.size} devices")
