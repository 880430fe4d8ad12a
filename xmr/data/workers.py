"""Batches made ahead, by threads of this process or by worker processes that end with it."""

import gc
import multiprocessing
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from xmr.errors import CutOff, UserError


class Batches(Iterator[Any]):
  """An iterator over batches that stops its threads and workers when it is closed, forgotten or the
  program ends.
  """

  def __init__(self, iterator, *, shared_memory):
    self._held = [iterator]
    self._shared_memory = shared_memory
    self.close = weakref.finalize(self, _close, self._held)

  def __iter__(self):
    return self

  def __next__(self):
    if not self._held:
      raise ValueError("these batches were closed")
    try:
      batch = next(self._held[0])
    except UserError as error:
      # Without what grain appends to the message.
      raise UserError(str(error).partition("\n---")[0]) from error
    except RuntimeError as error:
      if "Worker process was terminated" not in str(error):
        raise
      code = str(error).partition("exit code ")[2].partition(".")[0]
      raise CutOff(
        f"a data worker was killed (exit code {code}), by somebody or for its memory; the same "
        "command goes on from the last checkpoint, config.data.workers=0 does without workers"
      ) from error
    # Out of the workers' shared memory, which leaks where a batch outlives its iterator.
    return {key: np.array(value) for key, value in batch.items()} if self._shared_memory else batch


def _close(held):
  held.pop().close()
  # Now, as grain's objects, in cycles, fail noisily when the interpreter collects them at its end.
  gc.collect()


def iterate(source, workers, prefetch):
  """Returns Batches of a random-access source."""
  if not flags.FLAGS.is_parsed():
    # Workers copy absl's flags, which a notebook or a test never parses.
    flags.FLAGS.mark_as_parsed()
  threads = 1 if workers else max(1, min(prefetch, os.cpu_count() or 1))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=1 if workers else prefetch)
  dataset = grain.MapDataset.source(source).to_iter_dataset(options)
  if workers:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
      worker_init_fn=_end_with_parent,
    )
  return Batches(iter(dataset), shared_memory=bool(workers))


def _end_with_parent(index, count):
  """Makes a worker end when the process that started it has ended in any way. The worker would wait
  for ever to hand over its batch, and Python frees their shared memory only when it ends.
  """
  del index, count
  parent = multiprocessing.parent_process()

  def watch():
    assert parent is not None  # A worker has one.
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
