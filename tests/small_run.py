"""A run of seconds through the real command line: forty images and eighty captions, both as
features, small projections.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import quick_compilation

from xmr import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 12
# Features on both sides, as they compile fast; dropout, so that randomness counts; five steps per
# epoch.
SMALL = {
  "data.name": "karpathy",
  "data.image_features": "image.npy",
  "data.text_features": "text.npy",
  "model.image.name": "mlp",
  "model.image.hidden": 16,
  "model.image.dropout": 0.2,
  "model.text.name": "linear",
  "model.dim": 16,
  "batch_size": 16,
  "eval_batch_size": 16,
  "loss.name": "max_of_hinges",
  "optimizer.schedule": "constant",
  "epochs": 0.0,
  "steps": STEPS,
  "warmup.epochs": 0.0,
  "evaluate.epochs": 0.0,
  "evaluate.steps": 6,
  "checkpoint.steps": 2,
  "log.steps": 2,
  "log.tensorboard": False,
  "log.progress": False,
  "picture": False,
}

# A run on scenes, pixels and words; files of tests that share it share its compiled programs.
SCENES = {
  "data.scenes.n_train": 40,
  "data.scenes.n_val": 10,
  "data.scenes.n_test": 12,
  "batch_size": 16,
  "eval_batch_size": 16,
  "model.dim": 16,
  "model.text.name": "gru",
  "model.text.word_dim": 8,
  "model.text.dropout": 0.4,
  "epochs": 0.0,
  "steps": 12,
  "warmup.epochs": 0.0,
  "warmup.steps": 4,
  "evaluate.epochs": 0.0,
  "evaluate.steps": 6,
  "log.steps": 2,
}


def write_data(folder, *, n_images=60, captions=2, dim=24):
  """Writes a set in Karpathy's layout: every fifth image is of val, every sixth of test."""
  rng = np.random.default_rng(0)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  images, sentid = [], 0
  for imgid in range(n_images):
    split = "val" if imgid % 6 == 4 else "test" if imgid % 6 == 5 else "train"
    sentences = []
    for _ in range(captions):
      sentences.append({"raw": f"caption {sentid}", "sentid": sentid, "imgid": imgid})
      sentid += 1
    ids = [sentence["sentid"] for sentence in sentences]
    images.append(
      {
        "filename": f"{imgid}.jpg",
        "imgid": imgid,
        "split": split,
        "sentids": ids,
        "sentences": sentences,
      }
    )
  (folder / "dataset_small.json").write_text(json.dumps({"images": images, "dataset": "small"}))
  np.save(folder / "image.npy", rng.normal(size=(n_images, dim)).astype(np.float32))
  np.save(folder / "text.npy", rng.normal(size=(n_images * captions, dim)).astype(np.float32))
  return folder


def arguments(data, workdir, **changes):
  """Returns the flags of a run; changes as {"batch_size": 8} over SMALL."""
  kept = SMALL
  if "model.image.name" in changes:
    # Fields of the encoder that is not taken.
    kept = {key: value for key, value in SMALL.items() if not key.startswith("model.image.")}
  fields = kept | {"data.dir": data, "data.cache_dir": pathlib.Path(data) / "cache"} | changes
  flags = [f"--config.{key}={value}" for key, value in fields.items()]
  return ["--config=configs/imc_flickr.py:flickr8k_features", f"--workdir={workdir}", *flags]


def command(data, workdir, *, processes=1, **changes):
  """Returns the command line of a run in one process, or in several through launch/local.sh."""
  start = (
    [sys.executable, "-m", "xmr.main"]
    if processes == 1
    else ["bash", "launch/local.sh", f"--processes={processes}"]
  )
  return [*start, *arguments(data, workdir, **changes)]


def environment(devices=1, **changes):
  """Returns the environment of a process with so many virtual devices."""
  flags = f"{quick_compilation.FLAGS} --xla_force_host_platform_device_count={devices}"
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": flags,
    "PYTHON": sys.executable,
    **changes,
  }


def start(command, *, log, devices=1, **changes):
  """Starts a command; its output goes to a file, which no full pipe can stop."""
  with open(log, "w") as file:
    return subprocess.Popen(
      command, cwd=ROOT, env=environment(devices, **changes), stdout=file, stderr=subprocess.STDOUT
    )


def run(command, *, code=0, devices=1, timeout=400, **changes):
  """Runs a command to its end, with all that it starts, and returns its standard output and
  error.
  """
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment(devices, **changes),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )
  try:
    printed, _ = process.communicate(timeout=timeout)
  finally:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
  assert process.returncode == code, printed[-4000:]
  return printed


def wait_for(condition, *, seconds=300, process=None):
  """Waits until condition() is true; fails after so many seconds, or when the process has ended
  without it.
  """
  end = time.monotonic() + seconds
  while True:
    # First: what a process did last counts, however late this one looks.
    ended = process is not None and process.poll() is not None
    if condition():
      return
    assert time.monotonic() < end, "waited in vain"
    assert not ended, "the process has ended"
    time.sleep(0.01)


def parameters(workdir, step=STEPS):
  """Returns {"params....": array} of a checkpoint."""
  return checkpoint.flatten(checkpoint.load(workdir, step)[1])


def logged(workdir):
  """Returns the lines of metrics.jsonl, of which a run that goes on may be writing the next."""
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def newest_step(workdir):
  """Returns the newest saved step of a run, 0 for none."""
  return max(checkpoint.reading.steps(pathlib.Path(workdir) / "checkpoints"), default=0)


def steps_logged(workdir, name="train/loss"):
  """Returns the steps at which a number was logged."""
  return [line["step"] for line in logged(workdir) if name in line]


def assert_equal(first, second, *, atol=0):
  """Compares two {name: array}."""
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_allclose(first[name], second[name], rtol=0, atol=atol, err_msg=name)
