"""What a command does with input that is damaged, odd or hostile, drawn by seed.

  python -m tests.fuzz --minutes=10 [--seed=1000]

Every case changes one thing (a field of a config, a file of a data set, of weights, of an index or
of a run folder) and runs a command in process. The only outcomes are success, where a run folder
was changed with the undisturbed numbers of the step that is named, or one line and status 2 (1 for
a run that was cut off); no traceback, no case above 30 s, and nothing in the run folder is moved or
deleted. A case is a kind and a seed, or says itself what changes: tests/fuzz_corpus.json holds
those that once failed.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import numpy as np
import small_run
from absl import flags, logging
from ml_collections import config_flags
from PIL import Image

from xmr.errors import UserError, reported

LIMIT = 30  # seconds of a case, of the processor
PATIENCE = 300  # seconds by the clock, on a machine that others use too
CORPUS = pathlib.Path(__file__).with_name("fuzz_corpus.json")
ODD_NUMBERS = ["-1", "0", "1", "7", "0.5", "-0.0", "nan", "inf", "-inf", "1e12", "1e300", "2.5"]
ODD_NUMBERS += [str(2**31), str(2**63), str(2**64), "-" + "9" * 40, "1e-320"]
ODD_TEXTS = ["", " ", "None", "true", "()", "(1,)", "[]", "~", "/", "/dev/null", "a\x1b[2Jb", "$^$"]
ODD_TEXTS += ["../..", "x" * 300, "\u202e", "(('(', 1.0),)", "{}", "'", "\\"]
BYTES = ["random", "cut", "empty", "zeros", "doubled", "eight bytes", "a bit", "bits", "header"]
CHANGES = ["bytes"] * 6 + ["JSON", "folder", "link to nothing", "link to itself", "pipe", "gone"]
ODD_JSON = [None, True, [], {}, "", "x", -1, 0, 1e300, 2**70, [[]], {"a": {}}, "\ud800", "\x00"]


class Outcome:
  """How a command ended and what it said."""

  def __init__(self, status, said, value=None):
    self.status, self.said, self.value = status, said, value


class Slow(BaseException):
  """A case took too long; no handler of the command takes it for an error of its own."""


def outcome(function, *arguments, limit=LIMIT, patience=PATIENCE):
  """Runs a command in process; an error that no command may show is an Outcome of status -1."""

  def late(*_):
    raise Slow

  said, value = io.StringIO(), None
  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(patience)
  begun = time.process_time()
  try:
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), reported():
      value = function(*arguments)
    status = 0
  except SystemExit as error:
    status = error.code or 0
  except (Exception, Slow):
    said.write(traceback.format_exc())
    status = -1
  finally:
    used = time.process_time() - begun
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
  if used > limit:
    status = -1
    said.write(f"{used:.0f} s of the processor; expected at most {limit}")
  return Outcome(status, said.getvalue(), value)


def main_command(arguments):
  """What `python -m xmr.main` does, with flags of its own: absl defines those of a config once."""
  from xmr import command_line, train

  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_bool("eval_only", False, "", flag_values=values)
  argv = ["xmr.main", *arguments]
  with mock.patch.object(sys, "argv", argv):
    command_line.read_flags(argv, needed=("config", "workdir"), values=values)
  return train.train_and_evaluate(values.config, values.workdir, eval_only=values.eval_only)


def read_images(source, cache):
  """Returns {split: [(caption, bytes of its image)]} of a folder of one's own."""
  from xmr import config as config_lib
  from xmr import data

  config = config_lib.base_config()
  config.data.update({"name": "own", "dir": str(source), "cache_dir": str(cache)})
  return {
    name: [
      (text, bytes(split.pixels[row]))
      for text, row in zip(split.texts, split.image_of_text, strict=True)
    ]
    for name, split in data.load(config).items()
  }


def changed_bytes(rng, content, how=None):
  """Returns bytes that are changed in one of the ways of BYTES."""
  content = bytearray(content)
  how = how or BYTES[int(rng.integers(len(BYTES)))]
  if how == "random" or not content:
    return bytes(rng.integers(0, 256, rng.integers(1, 64), dtype=np.uint8))
  at = int(rng.integers(len(content)))
  if how == "cut":
    return bytes(content[:at])
  if how in ("empty", "zeros"):
    return bytes(len(content) * (how == "zeros"))
  if how == "doubled":
    return bytes(content) + bytes(content[at:])
  if how == "eight bytes":
    content[at : at + 8] = bytes(rng.integers(0, 256, 8, dtype=np.uint8))
  elif how == "header":
    content[int(rng.integers(min(128, len(content))))] = int(rng.integers(256))
  else:
    for _ in range({"a bit": 1, "bits": 16}[how]):
      content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
  return bytes(content)


def changed_json(rng, content):
  """Returns JSON text with a value, key or item replaced, removed or doubled; or nested deeply."""
  if rng.random() < 0.1:
    return "[" * 100_000
  value = json.loads(content)
  parent, key, node = None, None, value
  while isinstance(node, dict | list) and node and rng.random() < 0.85:
    parent = node
    key = (
      list(node)[int(rng.integers(len(node)))]
      if isinstance(node, dict)
      else int(rng.integers(len(node)))
    )
    node = parent[key]
  odd = ODD_JSON[int(rng.integers(len(ODD_JSON)))]
  if parent is None:
    value = odd
  elif rng.random() < 0.3:
    del parent[key]
  elif isinstance(parent, list) and rng.random() < 0.3:
    parent.append(parent[key])
  else:
    parent[key] = odd
  return json.dumps(value)


def changed_file(rng, path, how=None, content=None):
  """Changes a file: its bytes, its JSON, or what has its name; returns what it did.

  Args:
    how: one of BYTES or CHANGES, else drawn.  content: what the file holds from now on.
  """
  if content is not None:
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    return f"{path.name} holds {content[:40]!r}"
  how = how or CHANGES[int(rng.integers(len(CHANGES)))]
  if how == "JSON":
    with contextlib.suppress(ValueError):
      path.write_text(changed_json(rng, path.read_text()))
  elif how == "bytes" or how in BYTES:
    path.write_bytes(changed_bytes(rng, path.read_bytes(), None if how == "bytes" else how))
  else:
    path.unlink()
    if how == "folder":
      path.mkdir()
    elif how == "pipe":
      os.mkfifo(path)
    elif how != "gone":
      path.symlink_to({"link to nothing": path.parent / "nowhere", "link to itself": path}[how])
  return f"{path.name}: {how}"


def drawn(rng, folder, name=None):
  """Returns a file below a folder: the first that a pattern names, else any."""
  files = sorted(path for path in folder.rglob(name or "*") if path.is_file())
  files = [path for path in files if path.name != ".lock" and "xla" not in path.parts]
  return files[0 if name else int(rng.integers(len(files)))]


class Fuzz:
  """A small run, its data and its numbers, and the cases on copies of them."""

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    self.data = small_run.write_data(self.folder / "data")
    self.run = self.folder / "run"
    from xmr import checkpoint

    arguments = small_run.arguments(self.data, self.run)
    first = self._good(arguments)
    (self.run / "results.json").unlink()
    self.best, self.metrics, self.parameters = first["step"], {first["step"]: first["metrics"]}, {}
    for step in checkpoint.reading.steps(self.run / "checkpoints"):
      self.parameters[step] = checkpoint.flatten(checkpoint.load(self.run, step)[1])

  def _numbers(self, step):
    """Returns the metrics of a step, scored from a folder that has no other."""
    if step not in self.metrics:
      alone = shutil.copytree(self.run, self.folder / "alone")
      for other in set((alone / "checkpoints").iterdir()) - {alone / "checkpoints" / str(step)}:
        shutil.rmtree(other)
      arguments = small_run.arguments(self.data, alone)
      self.metrics[step] = self._good([*arguments, "--eval_only"])["metrics"]
      shutil.rmtree(alone)
    return self.metrics[step]

  def _good(self, arguments):
    done = outcome(main_command, arguments, limit=600, patience=1200)
    assert done.status == 0, done.said
    return done.value

  def case(self, kind, seed=0, **given):
    """Runs one case; returns a text that says what is wrong with its outcome, or None.

    Args:
      kind: one of KINDS.  seed: of all that is not given.  given: arguments of the kind's method.
    """
    rng = np.random.default_rng([KINDS.index(kind), seed])
    place = pathlib.Path(tempfile.mkdtemp(prefix=f"{kind}-{seed}-", dir=self.folder))
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
    try:
      what, done, problem = getattr(self, kind)(rng, place, **given)
    finally:
      faulthandler.cancel_dump_traceback_later()
      shutil.rmtree(place, ignore_errors=True)
    if problem is None:
      problem = self.wrong(done)
    return problem and f"{kind} {seed} {given or ''} ({what}): {problem}"

  def wrong(self, done):
    """Says what is wrong with the end of a command, or None."""
    errors = [line for line in done.said.splitlines() if line.startswith("xmr: error: ")]
    if "Traceback" in done.said or done.status not in (0, 1, 2):
      return f"status {done.status}\n{done.said[-3000:]}"
    if done.status and len(errors) != 1:
      return f"status {done.status} with {len(errors)} lines of error\n{done.said[-3000:]}"
    if any(ord(x) < 32 and x not in "\n\r" or 127 <= ord(x) < 160 for x in done.said):
      return f"control characters on the terminal: {done.said[-500:]!r}"
    return None

  def config(self, rng, place, fields=None, workdir="run"):
    """One field of a config has an odd value, or those that are given."""
    from xmr import config as config_lib

    known = config_lib.flat(config_lib.base_config())
    key = sorted(known)[int(rng.integers(len(known)))]
    number = isinstance(known[key], int | float) or rng.random() < 0.2
    pool = ODD_NUMBERS if number else ODD_TEXTS
    value = pool[int(rng.integers(len(pool)))]
    fields = fields or {key: value}
    changes = {"steps": 1, "evaluate.steps": 1, "checkpoint.steps": 1, **fields}
    arguments = small_run.arguments(self.data, place / workdir, **changes)
    return f"{fields} in {workdir}", outcome(main_command, arguments), None

  def config_file(self, rng, place, content=None):
    """A config file is changed in its bytes, or its variant has an odd name."""
    path = place / "own.py"
    if content is None:
      content = (small_run.ROOT / "configs" / "imc_flickr.py").read_bytes()
      path.write_bytes(changed_bytes(rng, content))
    else:
      path.write_text(content)
    variant = ["flickr8k_features", "", "none", "\x1b", ":"][int(rng.integers(5))]
    arguments = small_run.arguments(self.data, place / "run", steps=1, **{"evaluate.steps": 1})
    arguments[0] = f"--config={path}:{variant}"
    return path.name, outcome(main_command, arguments), None

  def dataset(self, rng, place, file=None, **change):
    """A file of the data set is changed."""
    data = shutil.copytree(self.data, place / "data", ignore=shutil.ignore_patterns("cache"))
    what = changed_file(rng, drawn(rng, data, file), **change)
    changes = {"steps": 1, "evaluate.steps": 1, "data.cache_dir": self.data / "cache"}
    arguments = small_run.arguments(data, place / "run", **changes)
    return what, outcome(main_command, arguments), None

  def scored(self, rng, place, **change):
    """A file of the run folder is changed; --eval_only scores it."""
    run = shutil.copytree(self.run, place / "run")
    what = self._hurt(rng, run, **change)
    before = set(run.rglob("*"))
    done = outcome(main_command, [*small_run.arguments(self.data, run), "--eval_only"])
    problem = None
    if done.status == 0:
      problem = self._undisturbed(done.value, done.said)
    if before - set(run.rglob("*")):
      problem = f"moved or deleted: {sorted(before - set(run.rglob('*')))[:3]}"
    return what, done, problem

  def inspected(self, rng, place, **change):
    """A file of the run folder is changed; xmr.inspect loads it."""
    from xmr import checkpoint, inspect

    run = shutil.copytree(self.run, place / "run")
    what = self._hurt(rng, run, **change)
    step = ["best", "latest", "12"][int(rng.integers(3))]
    done = outcome(inspect.load, run, step)
    problem = None
    if done.status == 0:
      found, true = checkpoint.flatten(done.value.variables), self.parameters[done.value.step]
      if any(not np.array_equal(found.get(name), true[name]) for name in {**true, **found}):
        problem = f"other parameters than those of step {done.value.step}"
    return what, done, problem

  def resumed(self, rng, place, **change):
    """A file of the run folder is changed; the same command goes on to the same parameters."""
    from xmr import checkpoint

    run = shutil.copytree(self.run, place / "run")
    shutil.rmtree(run / "checkpoints" / str(small_run.STEPS))
    what = self._hurt(rng, run, **change)
    done = outcome(main_command, small_run.arguments(self.data, run))
    problem = None
    if done.status == 0:
      found = checkpoint.flatten(checkpoint.load(run, small_run.STEPS)[1])
      true = self.parameters[small_run.STEPS]
      if any(not np.array_equal(found.get(name), true[name]) for name in {**true, **found}):
        problem = "other parameters at the end"
    return what, done, problem

  def weights(self, rng, place, **change):
    """A safetensors or PyTorch file is changed; its tensors are read."""
    import safetensors.numpy

    from xmr.interop import torch_files

    path = place / "weights.safetensors"
    safetensors.numpy.save_file({"a": np.ones((4, 4), np.float32), "b": np.arange(6)}, path)
    if rng.random() < 0.3:
      import torch

      torch.save({"state_dict": {"a": torch.ones(4, 4), "b": torch.arange(6)}}, path)
    what = changed_file(rng, path, **change)
    return what, outcome(torch_files.read_tensors, path), None

  def arrays(self, rng, place, **change):
    """A .npy file that we wrote is changed; it is read."""
    from xmr.storage import files

    path, array = place / "a.npy", np.arange(60.0).reshape(12, 5)
    files.write_array(path, array)
    what = changed_file(rng, path, **({"how": "header"} if rng.random() < 0.5 else {}) | change)

    def read():
      try:
        return np.array(files.read_array(path))
      except ValueError as error:  # As features.opened and the caches say it.
        raise UserError(str(error)) from None

    done = outcome(read)
    same = done.status or np.array_equal(done.value, array) and done.value.dtype == array.dtype
    return what, done, None if same else f"another array: {done.value!r}"

  def cache(self, rng, place, file=None, **change):
    """A file of the cache of prepared images is changed; they are read again."""
    source, cache = (self._images()[0] / name for name in ("source", "cache"))
    cache = shutil.copytree(cache, place / "cache")
    what = changed_file(rng, drawn(rng, cache, file), **change)
    done = outcome(read_images, source, cache)
    same = done.status or done.value == self._images()[1]
    return what, done, None if same else "other images or captions"

  def kept(self, rng, place, number=None, swap=None, **change):
    """A kept matrix of relevance, its pairs or a graph of words is changed in a cache, or another
    of its shape has its name: what is read or made again is the same.
    """
    from xmr.data import text_graph
    from xmr.eval import relevance

    (place / "vectors").write_text("".join(f"w{i} {i % 3} {i % 5} {i % 7}\n" for i in range(12)))
    texts = [[f"w{(i * i + k) % 12}" for k in range(5)] for i in range(8)]
    joined, owner = [" ".join(words) for words in texts], np.repeat(np.arange(4), 2)
    options = {"cache_dir": place / "cache", "workers": 1}
    graph = {"min_count": 1, "vectors": str(place / "vectors"), "cache_dir": place / "cache"}
    make = (
      lambda x: relevance.rouge_l(joined, owner, beta=1 + x, **options),
      lambda x: relevance.rouge_l_above(joined, owner, above=0.3 + x / 100, **options),
      lambda x: text_graph.build(texts, neighbours=3 - x, **graph).values,
    )[int(rng.integers(3)) if number is None else number]
    true, known = np.array(make(0)), set((place / "cache").iterdir())
    make(1)
    (path,), (other,) = known, set((place / "cache").iterdir()) - known
    what = f"{other} in place of {path}"
    if rng.random() < 0.2 if swap is None else swap:
      other.replace(path)
    else:
      what = changed_file(rng, path, **change)
    done = outcome(lambda: np.array(make(0)))
    return what, done, None if done.status or np.array_equal(done.value, true) else "other numbers"

  def _images(self):
    """Returns (folder with a source of images and its cache, what read_images says of them)."""
    folder = self.folder / "images"
    if not folder.is_dir():
      (folder / "source").mkdir(parents=True)
      rng, lines = np.random.default_rng(0), ["image,caption"]
      for i in range(12):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "source" / f"{i}.png")
        lines.append(f"{i}.png,caption {i}")
      (folder / "source" / "captions.csv").write_text("\n".join(lines))
      done = outcome(read_images, folder / "source", folder / "cache")
      assert done.status == 0, done.said
      self.read = done.value
    return folder, self.read

  def _hurt(self, rng, run, file=None, **change):
    path = drawn(rng, run, file)
    where = path.relative_to(run).parent
    return f"{where}: {changed_file(rng, path, **change)}"

  def _undisturbed(self, results, said):
    step = results["step"]
    if step != self.best and "does not restore" not in said:
      return f"scored step {step} without a word"
    if self._numbers(step) != results["metrics"]:
      return f"other numbers than those of step {step}"
    return None


KINDS = ["config", "config_file", "dataset", "scored", "inspected", "resumed", "weights"]
KINDS += ["arrays", "cache", "kept"]


def main(argv=None):
  """Runs cases for so many minutes; status 1 where one of them fails, whose kind and seed it
  prints.
  """
  parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
  parser.add_argument("--minutes", type=float, default=10)
  parser.add_argument("--seed", type=int, default=1000)
  parser.add_argument("--kind", choices=KINDS, help="only this kind")
  options = parser.parse_args(argv)
  failed, count = [], 0
  kinds = [options.kind] if options.kind else KINDS
  os.chdir(small_run.ROOT)
  logging.set_verbosity(logging.FATAL)
  warnings.simplefilter("ignore")
  with tempfile.TemporaryDirectory() as folder:
    fuzz, seed = Fuzz(folder), options.seed
    # From here: on a busy machine the run that is changed may take minutes.
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
      for kind in kinds:
        problem = fuzz.case(kind, seed)
        count += 1
        if problem:
          failed.append((kind, seed))
          print(f"FAILED {problem}\n", flush=True)
      seed += 1
  print(f"{count} cases from seed {options.seed} to {seed - 1}; failed: {failed}")
  return 1 if failed else 0


if __name__ == "__main__":
  raise SystemExit(main())
