"""Writes a network's features of a dataset's images.

  python -m xmr.extract --config=configs/vsepp_flickr.py --backbone=resnet152
  --weights=resnet152.safetensors --out=DIR
  python -m xmr.extract --config=configs/own.py --config.data.dir=DIR --workdir=runs/clip --out=DIR

DIR/features.npy has a row per image id, as config.data.image_features expects, and
DIR/manifest.json says what it is made of. The same command goes on where a killed one stopped.
Weights come from python -m xmr.models.convert; with --workdir the network is the image encoder of
a run, trained here or imported, and images are cut as that run cuts them. Several processes share
the images where XMR_COORDINATOR=HOST:PORT, XMR_PROCESSES and XMR_PROCESS are set for each, or under
srun.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import sys
import time

from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import UserError, reported

BLOCK = 256  # images per file of finished work
AVERAGES = ("none", "flip", "ten_crop")  # see xmr.inspect.extraction.views


def define_flags():
  """Declares the command's flags; returns the holder of the config."""
  holder = config_flags.DEFINE_config_file(
    "config", None, "File of a config, or file:variant; its data section is read."
  )
  flags.DEFINE_string("backbone", None, "Kind of network, as in xmr.models.convert.")
  flags.DEFINE_string("weights", None, "safetensors file that xmr.models.convert wrote.")
  flags.DEFINE_string("workdir", None, "Folder of a run, in place of --backbone and --weights.")
  flags.DEFINE_string("out", None, "Folder to write to.")
  flags.DEFINE_enum(
    "average",
    "none",
    AVERAGES,
    "Mean over the image and its mirror, or five crops and their mirrors.",
  )
  flags.DEFINE_bool(
    "grid", False, "Write the last map, 7 x 7 for 224 pixels, or a tower's patches, not their mean."
  )
  flags.DEFINE_enum("dtype", "float32", ("float32", "float16"), "Type of the numbers in the file.")
  flags.DEFINE_integer("batch_size", 32, "Images at a time, over all devices and processes.")
  flags.DEFINE_integer("threads", 4, "Threads of a process that decode images.")
  return holder


def images_of(config):
  """Returns all images of a dataset as [(id, pixels, row, name)] by id, and the number of rows of a
  feature file, in which images that the source names but lacks have a row, too.
  """
  from xmr import data

  found, splits = {}, data.load(config)
  for line in getattr(splits, "lines", ()):
    print(line, file=sys.stderr)
  for split in splits.values():
    if split.pixels is None:
      raise UserError(
        f'config.data.image is {config.data.image!r}; features are extracted from "pixels"'
      )
    for row, number in enumerate(split.image_id):
      found[int(number)] = (split.pixels, row, split.image_names[row])
  items = [(number, *found[number]) for number in sorted(found)]
  return items, getattr(splits, "n_images", None) or items[-1][0] + 1


def claim(out, manifest):
  """Makes the folder, or checks that it belongs to the same work; returns whether the work is done.

  Raises:
    UserError: it holds other work; names every field that differs.
  """
  from xmr.storage.digests import sealed
  from xmr.storage.files import read_array, read_json, write_json

  path, done = pathlib.Path(out) / "manifest.json", False
  if path.exists():
    old = read_json(path)
    wrong = [
      f"{key}: {old.get(key)!r} -> {value!r}"
      for key, value in manifest.items()
      if old.get(key) != value
    ]
    if wrong:
      raise UserError(
        f"{out} holds features made otherwise ({'; '.join(wrong)}); give another --out"
      )
    # Features that were removed or damaged are made again.
    with contextlib.suppress(OSError, ValueError):
      found = read_array(path.parent / "features.npy")
      done = bool(old.get("complete")) and [*found.shape] == manifest["shape"]
  if not done:
    try:
      (path.parent / "blocks").mkdir(parents=True, exist_ok=True)
      write_json(path, sealed(manifest | {"complete": False}))
    except OSError as error:
      raise UserError(f"cannot write to {out}: {error.strerror}") from None
  return done


def key_of(path, manifest):
  """Returns what a block's rows depend on: which block it is, and all that the manifest says."""
  from xmr.storage.digests import of_json

  return f"{path.name} {of_json(manifest)}"


def finished(path, manifest, shape):
  """Whether a block's file is there, whole, and of this work."""
  from xmr.storage.files import read_array

  try:
    return read_array(path, key=key_of(path, manifest)).shape == shape
  except (OSError, ValueError):
    return False


def assemble(out, items, manifest):
  """Joins the blocks into features.npy, rows by image id; rows without an image are zero."""
  import numpy as np

  from xmr.storage import digests
  from xmr.storage.files import read_array

  temporary = out / ".features.npy"
  table = np.lib.format.open_memmap(
    temporary, "w+", dtype=manifest["dtype"], shape=tuple(manifest["shape"])
  )
  for start in range(0, len(items), BLOCK):
    rows = [number for number, *_ in items[start : start + BLOCK]]
    path = out / "blocks" / f"{start:08d}.npy"
    try:
      table[rows] = read_array(path, key=key_of(path, manifest))
    except (OSError, ValueError) as error:
      raise UserError(f"{path} cannot be read: {error}; the same command makes it again") from None
  table.flush()
  del table
  with temporary.open("r+b") as file:
    digests.seal(file)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(out / "features.npy")


def extract(
  config,
  *,
  out,
  backbone=None,
  weights=None,
  workdir=None,
  average="none",
  grid=False,
  dtype="float32",
  batch_size=32,
  threads=4,
):
  """Writes features.npy and manifest.json of all images of a dataset.

  Args:
    config: of a file in configs/; its data section is read.  out: folder.
    backbone: one of convert.IMAGE_KINDS, with weights: converted safetensors file.
    workdir: folder of a run, in place of both.
    average, grid, dtype, batch_size, threads: as the flags.
  Returns:
    dict as in manifest.json.
  Raises:
    UserError: bad data, weights or settings, or a folder with other work.
  """
  import jax
  import numpy as np
  from jax.experimental import multihost_utils
  from tqdm import tqdm

  from xmr import parallel
  from xmr.data import images
  from xmr.inspect import extraction
  from xmr.storage.digests import sealed
  from xmr.storage.files import read_json, write_array, write_json
  from xmr.storage.locks import folder_held

  if grid and average == "ten_crop":
    raise UserError(
      "--grid and --average=ten_crop: the cells of ten crops show different places; use none or "
      "flip"
    )
  mesh, processes = parallel.mesh(), jax.process_count()
  if batch_size < 1 or batch_size % mesh.size:
    raise UserError(f"--batch_size is {batch_size}; expected a multiple of the {mesh.size} devices")
  if threads < 1:
    raise UserError(f"--threads is {threads}; expected 1 or more")
  if workdir:
    network = extraction.of_run(workdir, grid=grid)
  else:
    network = extraction.of_backbone(backbone, weights, config.data, grid=grid)
  items, rows = images_of(config)
  encode, size = extraction.averaging(network.apply, grid=grid), network.cut["size"]
  shape = jax.eval_shape(
    encode, network.variables, jax.ShapeDtypeStruct((1, 1, size, size, 3), np.uint8)
  ).shape[1:]
  manifest = {
    "dataset": config.data.name,
    "images": len(items),
    "shape": [rows, *shape],
    "dtype": dtype,
    "row": "image id",
    "average": average,
    "grid": grid,
    **network.manifest,
  }
  out, first = pathlib.Path(out), jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    if first:
      stack.enter_context(folder_held(out, doing="writing features"))
    starts = list(range(0, len(items), BLOCK))
    todo = np.zeros(len(starts), bool)
    if first and not claim(out, manifest):
      todo[:] = [
        not finished(
          out / "blocks" / f"{start:08d}.npy", manifest, (len(items[start : start + BLOCK]), *shape)
        )
        for start in starts
      ]
    if processes > 1:
      todo = multihost_utils.broadcast_one_to_all(todo)
    made = first and (out / "features.npy").exists() and not todo.any()
    if made and read_json(out / "manifest.json").get("complete"):
      return manifest | {"complete": True}
    variables = parallel.replicate(mesh, network.variables)
    own = batch_size // processes

    def pixels(item):
      _, source, row, name = item
      image = images.decode(source[row], name=name)
      return extraction.views(image, average=average, **network.cut)

    wanted = [
      (start, min(start + BLOCK, len(items)))
      for start, missing in zip(starts, todo, strict=True)
      if missing
    ]
    work = [(start, begin) for start, stop in wanted for begin in range(start, stop, batch_size)]
    began, count = time.perf_counter(), 0
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(threads))
    bar = stack.enter_context(
      tqdm(
        total=len(items),
        initial=len(items) - sum(stop - start for start, stop in wanted),
        unit="image",
        disable=not first,
        file=sys.stderr,
        dynamic_ncols=True,
      )
    )

    def load(item):
      start, begin = item
      batch = items[begin : min(begin + batch_size, start + BLOCK)]
      padded = batch + batch[-1:] * (batch_size - len(batch))
      mine = padded[own * jax.process_index() : own * (jax.process_index() + 1)]
      return len(batch), [pool.submit(pixels, item) for item in mine]

    done, ahead = [], [load(item) for item in work[:1]]
    for number, (start, begin) in enumerate(work):
      length, futures = ahead.pop()
      # The next batch is decoded while the devices work on this one.
      ahead += [load(item) for item in work[number + 1 : number + 2]]
      batch = parallel.shard(mesh, {"pixels": np.stack([future.result() for future in futures])})
      done.append(parallel.gather(encode(variables, batch["pixels"]))[:length].astype(dtype))
      bar.update(length)
      count += length
      if begin + batch_size >= min(start + BLOCK, len(items)):
        if first:
          path = out / "blocks" / f"{start:08d}.npy"
          write_array(path, np.concatenate(done), key=key_of(path, manifest))
        done = []
    if first:
      assemble(out, items, manifest)
      write_json(out / "manifest.json", sealed(manifest | {"complete": True}))
      shutil.rmtree(out / "blocks")
      speed = count / max(time.perf_counter() - began, 1e-9)
      made = f"{out / 'features.npy'}: {manifest['shape']} {dtype}"
      print(f"{made}, {count} images at {speed:.1f} images/s")
    return manifest | {"complete": True}


def check_network(values):
  """Raises UserError where the flags name no network, or two."""
  given = [name for name in ("backbone", "weights", "workdir") if values[name].value]
  if given not in (["backbone", "weights"], ["workdir"]):
    found = " and ".join(f"--{name}" for name in given) or "none of them"
    raise UserError(f"found {found}; expected --backbone and --weights, or --workdir alone")


def main(argv):
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake."""
  holder = define_flags()
  if command_line.asks_for_help(argv):
    print(f"{__doc__}\n" + flags.FLAGS.get_help(include_special_flags=False))
    return
  with reported():
    command_line.read_flags(
      argv,
      needed=("config", "out"),
      usage="python -m xmr.extract --config= --backbone= --weights= --out=, or --workdir= in place "
      "of --backbone= and --weights=",
    )
    values = flags.FLAGS
    check_network(values)
    from xmr import parallel

    parallel.initialize()
    with parallel.together(), reported():
      extract(
        holder.value,
        backbone=values.backbone,
        weights=values.weights,
        workdir=values.workdir,
        out=values.out,
        average=values.average,
        grid=values.grid,
        dtype=values.dtype,
        batch_size=values.batch_size,
        threads=values.threads,
      )


if __name__ == "__main__":
  main(sys.argv)
