"""Batches: the content of a batch depends only on the seed and the step, in any process."""

import mmap
from collections.abc import Iterator

import numpy as np

from xmr.data import images
from xmr.data.split import Batch
from xmr.data.workers import iterate
from xmr.errors import UserError

_ENDLESS = 1 << 48
_ORDER, _CAPTION, _AUGMENT = 1, 2, 3  # streams of random numbers


def steps_per_epoch(split, *, batch_size, one_caption_per_image=False):
  """Returns the steps of one epoch, whose last, partial batch is dropped.

  Args:
    split: Split of N images, T captions.
    batch_size: int, over all processes.
    one_caption_per_image: True: an epoch is N samples; False: T.
  Raises:
    UserError: a batch is larger than that.
  """
  samples = len(split.image_id) if one_caption_per_image else len(split.text_id)
  if not 0 < batch_size <= samples:
    unit = "images" if one_caption_per_image else "captions"
    raise UserError(
      f"config.batch_size is {batch_size}; expected 1 to {samples}, the {unit} of split "
      f"{split.name}"
    )
  return samples // batch_size


def train_batches(
  split,
  *,
  batch_size,
  seed,
  start=0,
  vocabulary=None,
  length=None,
  image_size=224,
  min_area=0.08,
  interpolation="bilinear",
  one_caption_per_image=False,
  shard_index=0,
  shard_count=1,
  workers=0,
  prefetch=2,
) -> Iterator[Batch]:
  """Returns an endless iterator over training batches.

  Epoch e = step // steps_per_epoch visits the samples in an order drawn from (seed, e); a sample is
  a caption with its image, or with one_caption_per_image an image with one of its captions. A crop
  is drawn from (seed, step, row of the global batch). So a run resumes from `start` alone, and the
  number of processes or workers may change between two starts.

  Args:
    split: Split.
    batch_size: int B, over all processes.
    seed: int.
    start: int, first step.
    vocabulary: Vocabulary; not needed with text features.
    length: int L, words per caption with <start> and <end>; None: the longest of the split.
    image_size: int S, pixels of a side.
    min_area: float, share of an image that a random crop covers at least.
    interpolation: of the resize, see images.INTERPOLATIONS.
    one_caption_per_image: True: a batch holds an image once and an epoch one random caption of
      each.
    shard_index, shard_count: int, this process and their number; it gets its B / shard_count
      consecutive rows.
    workers: int, processes that decode; 0 = threads of this one. Features need none and use none.
    prefetch: int, batches ready ahead, per worker.
  Returns:
    iterator of {"image": [b, S, S, 3] uint8, [b, F] or [b, R, F] float32, "image_mask": [b, R]
      bool (regions with a mask only), "text": [b, L] int32 or [b, F] float32, "text_length": [b]
      int32 (words only), "image_id", "text_id": [b] int32, "label": [b] int32 (where there are
      categories)} with b = B / shard_count.
  Raises:
    UserError: a batch that is larger than the data or does not divide among the processes; while
      iterating, an image that cannot be decoded.
  """
  steps = steps_per_epoch(split, batch_size=batch_size, one_caption_per_image=one_caption_per_image)
  source = _TrainBatches(
    rows=_shard(batch_size, shard_index, shard_count),
    start=start,
    steps=steps,
    batch_size=batch_size,
    seed=seed % (1 << 64),
    one_caption_per_image=one_caption_per_image,
    pictures=_Images(split, image_size=image_size, min_area=min_area, interpolation=interpolation),
    captions=_Captions(split, vocabulary, length),
  )
  return iterate(source, workers if split.image_features is None else 0, prefetch)


def image_batches(
  split,
  *,
  batch_size,
  image_size=224,
  resize=256,
  fit="crop",
  interpolation="bilinear",
  shard_index=0,
  shard_count=1,
  workers=0,
  prefetch=2,
) -> Iterator[Batch]:
  """Returns an iterator over the centre crops of a split's images, each once, in row order.

  Args:
    As in train_batches; resize: int, shorter side before the crop; fit: see images.eval_crop.
  Returns:
    iterator of {"image", "image_mask" (regions with a mask only), "image_id", "row", "label" (where
    there are categories)}; row: [b] int32, row of the split. Every batch is full: the last repeats
    the last image with row -1.
  """
  pictures = _Images(
    split, image_size=image_size, resize=resize, fit=fit, interpolation=interpolation
  )
  source = _EvalBatches(
    _shard(batch_size, shard_index, shard_count), batch_size, len(split.image_id), pictures
  )
  return iterate(source, workers if split.image_features is None else 0, prefetch)


def text_batches(
  split,
  *,
  batch_size,
  vocabulary=None,
  length=None,
  shard_index=0,
  shard_count=1,
  workers=0,
  prefetch=2,
) -> Iterator[Batch]:
  """Returns an iterator over the captions of a split, each once, in row order.

  Args:
    As in train_batches; workers is there for symmetry: captions need none.
  Returns:
    iterator of {"text", "text_length" (words only), "text_id", "image_id", "row", "label" (where
    there are categories)}; row as in image_batches.
  """
  del workers
  captions = _Captions(split, vocabulary, length)
  source = _EvalBatches(
    _shard(batch_size, shard_index, shard_count), batch_size, len(split.text_id), captions
  )
  return iterate(source, 0, prefetch)


def _shard(batch_size, index, count):
  if batch_size < 1 or batch_size % count:
    raise UserError(
      f"the batch size is {batch_size}; expected a multiple of {count}, the number of processes"
    )
  if not 0 <= index < count:
    raise ValueError(f"shard_index is {index}; expected 0 to {count - 1}")
  size = batch_size // count
  return np.arange(index * size, (index + 1) * size)


def _generator(seed, stream, *position):
  """Returns a generator whose numbers depend on all arguments and on nothing else."""
  counter = np.zeros(4, np.uint64)
  counter[4 - len(position) :] = position  # The low words count the numbers drawn.
  return np.random.Generator(
    np.random.Philox(key=np.array([seed, stream], np.uint64), counter=counter)
  )


class _Images:
  """Images or their features by row of the split."""

  def __init__(self, split, *, image_size, interpolation, resize=None, fit="crop", min_area=1.0):
    if split.pixels is None and split.image_features is None:
      raise UserError(
        f"split {split.name} has no images: expected config.data.image to be pixels or features"
      )
    cropped = resize is not None and fit != "stretch"
    if cropped and split.image_features is None and image_size > resize:
      raise UserError(
        f"config.data.image_size is {image_size}; expected at most config.data.resize, {resize}"
      )
    self.features, self.mask, self.pixels = split.image_features, split.image_mask, split.pixels
    self.names, self.image_id, self.label = split.image_names, split.image_id, split.label
    self.size, self.resize, self.min_area = image_size, resize, min_area
    self.fit, self.interpolation = fit, interpolation

  def __call__(self, rows, generator=None):
    """Returns the batch fields of some rows; generator(i) gives the random numbers of the crop of
    row i of the batch.
    """
    batch = {"image_id": self.image_id[rows]}
    if self.label is not None:
      batch["label"] = self.label[rows]
    if self.features is not None:
      batch["image"] = np.asarray(self.features[rows], np.float32)
      if self.mask is not None:
        batch["image_mask"] = self.mask[rows]
      return batch
    batch["image"] = np.empty((len(rows), self.size, self.size, 3), np.uint8)
    assert self.pixels is not None  # Checked above: no features, so pixels.
    for index, row in enumerate(rows):
      image = images.decode(self.pixels[row], name=self.names[row])
      if generator is None:
        batch["image"][index] = images.eval_crop(
          image,
          resize=self.resize,
          size=self.size,
          fit=self.fit,
          interpolation=self.interpolation,
        )
      else:
        batch["image"][index] = images.train_crop(
          image,
          generator(index),
          size=self.size,
          min_area=self.min_area,
          interpolation=self.interpolation,
        )
    return batch

  def __getstate__(self):
    return self.__dict__ | {"features": _Mapped.of(self.features)}

  def __setstate__(self, state):
    self.__dict__ = state | {"features": _Mapped.open(state["features"])}


class _Captions:
  """Captions or their features by row of the split."""

  def __init__(self, split, vocabulary, length):
    self.text_id, self.image_of_text = split.text_id, split.image_of_text
    self.image_id, self.label = split.image_id, split.label
    self.features = split.text_features
    if self.features is None:
      if vocabulary is None:
        raise ValueError(f"split {split.name} has captions as words; expected a vocabulary")
      self.text, self.text_length = vocabulary.encode_split(split, length=length)

  def __call__(self, rows):
    batch = {"text_id": self.text_id[rows], "image_id": self.image_id[self.image_of_text[rows]]}
    if self.label is not None:
      batch["label"] = self.label[self.image_of_text[rows]]
    if self.features is not None:
      batch["text"] = np.asarray(self.features[rows], np.float32)
    else:
      batch["text"], batch["text_length"] = self.text[rows], self.text_length[rows]
    return batch

  def __getstate__(self):
    return self.__dict__ | {"features": _Mapped.of(self.features)}

  def __setstate__(self, state):
    self.__dict__ = state | {"features": _Mapped.open(state["features"])}


class _Mapped:
  """A memory-mapped array as it is sent to a worker: its offset in the file, not its values."""

  def __init__(self, array, mapping):
    # memmap.offset is that of the array it was cut from; the address tells where a slice starts.
    start = array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    offset = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + start
    self.arguments = (array.filename, array.dtype, "r", offset, array.shape)

  @classmethod
  def of(cls, array):
    mapping = array
    while isinstance(mapping, np.ndarray):
      mapping = mapping.base
    return (
      cls(array, mapping) if isinstance(mapping, mmap.mmap) and array.flags.c_contiguous else array
    )

  @staticmethod
  def open(array):
    return np.memmap(*array.arguments) if isinstance(array, _Mapped) else array


class _TrainBatches:
  """Random access to training batches: [i] is that of step start + i."""

  def __init__(
    self, *, rows, start, steps, batch_size, seed, one_caption_per_image, pictures, captions
  ):
    self.rows, self.start, self.steps = rows, start, steps
    self.batch_size, self.seed = batch_size, seed
    self.images, self.captions = pictures, captions
    self.one_caption_per_image = one_caption_per_image
    self._epoch = (-1, np.zeros(0, int))  # its number, its captions in their order
    if one_caption_per_image:
      self._by_image = np.argsort(captions.image_of_text, kind="stable")
      self._count = np.bincount(captions.image_of_text, minlength=len(captions.image_id))

  def __len__(self):
    return _ENDLESS - self.start

  def _order(self, epoch):
    """Returns the captions of an epoch in their order."""
    known, order = self._epoch
    if known != epoch:
      generator = _generator(self.seed, _ORDER, epoch)
      if self.one_caption_per_image:
        chosen = _generator(self.seed, _CAPTION, epoch).integers(self._count)
        captions = self._by_image[np.cumsum(self._count) - self._count + chosen]
        order = captions[generator.permutation(len(captions))]
      else:
        order = generator.permutation(len(self.captions.text_id))
      self._epoch = (epoch, order)
    return order

  def __getitem__(self, index):
    step = self.start + int(index)
    epoch, index = divmod(step, self.steps)
    texts = self._order(epoch)[index * self.batch_size + self.rows]
    pictures = self.images(
      self.captions.image_of_text[texts],
      lambda i: _generator(self.seed, _AUGMENT, step, self.rows[i]),
    )
    return self.captions(texts) | pictures


class _EvalBatches:
  """Random access to batches of consecutive rows."""

  def __init__(self, rows, batch_size, total, fields):
    self.rows, self.batch_size, self.total, self.fields = rows, batch_size, total, fields

  def __len__(self):
    return -(-self.total // self.batch_size)

  def __getitem__(self, index):
    rows = int(index) * self.batch_size + self.rows
    batch = self.fields(np.minimum(rows, self.total - 1))
    return batch | {"row": np.where(rows < self.total, rows, -1).astype(np.int32)}
