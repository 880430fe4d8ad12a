"""Batches: a pure function of seed and step, whoever computes them."""

import dataclasses
import pickle

import numpy as np
import pytest

from xmr.data import build_vocabulary, images, load, pipeline
from xmr.errors import UserError


@pytest.fixture
def loaded(folder, data_config):
  splits = load(data_config(image="features", text="words", restval=True))
  return splits["train"], build_vocabulary(splits, min_count=1)


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_equal(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


def joined(parts):
  return [
    {key: np.concatenate([part[key] for part in row]) for key in row[0]}
    for row in zip(*parts, strict=True)
  ]


def test_batch_holds_captions_with_their_images(loaded, folder):
  train, vocabulary = loaded
  features = np.load(folder.path / "image.npy")
  for batch in take(pipeline.train_batches(train, batch_size=6, seed=0, vocabulary=vocabulary), 4):
    assert {key: (value.shape, str(value.dtype)) for key, value in batch.items()} == {
      "image": ((6, 5), "float32"),
      "text": ((6, 7), "int32"),
      "text_length": ((6,), "int32"),
      "image_id": ((6,), "int32"),
      "text_id": ((6,), "int32"),
    }
    for i in range(6):
      words = [vocabulary.words[number] for number in batch["text"][i, : batch["text_length"][i]]]
      row = train.text_id.tolist().index(batch["text_id"][i])
      assert words == ["<start>", *train.tokens[row], "<end>"]
      assert words[2] == str(batch["image_id"][i])
      np.testing.assert_array_equal(batch["image"][i], features[batch["image_id"][i]])


def test_an_epoch_has_every_caption_once_but_the_last_partial_batch(loaded):
  train, vocabulary = loaded
  steps = pipeline.steps_per_epoch(train, batch_size=5)
  assert (len(train.text_id), steps) == (21, 4)
  batches = take(
    pipeline.train_batches(train, batch_size=5, seed=3, vocabulary=vocabulary), 2 * steps
  )
  epochs = [
    np.concatenate([batch["text_id"] for batch in part])
    for part in (batches[:steps], batches[steps:])
  ]
  assert [len(set(epoch.tolist())) for epoch in epochs] == [20, 20]
  assert not np.array_equal(*epochs)


def test_one_caption_per_image_never_repeats_an_image_in_an_epoch(loaded):
  train, vocabulary = loaded
  options = {"batch_size": 3, "one_caption_per_image": True}
  assert pipeline.steps_per_epoch(train, **options) == 2
  batches = take(pipeline.train_batches(train, seed=0, vocabulary=vocabulary, **options), 200)
  for first, second in zip(batches[::2], batches[1::2], strict=True):
    assert len(set(first["image_id"].tolist() + second["image_id"].tolist())) == 6
  # All captions have their turn, those of one image equally often.
  seen = np.concatenate([batch["text_id"] for batch in batches])
  counts = {caption: int((seen == caption).sum()) for caption in train.text_id.tolist()}
  assert len(counts) == 21 and min(counts.values()) > 8
  assert all(
    train.image_id[train.image_of_text[train.text_id.tolist().index(b)]] == a
    for a, b in [
      (image, caption)
      for batch in batches
      for image, caption in zip(batch["image_id"], batch["text_id"], strict=True)
    ]
  )


def test_start_is_the_whole_state(loaded):
  train, vocabulary = loaded
  options = {"batch_size": 5, "seed": 7, "vocabulary": vocabulary}
  batches = take(pipeline.train_batches(train, **options), 11)
  for start in (1, 4, 9):
    assert_equal(
      take(pipeline.train_batches(train, start=start, **options), 2), batches[start : start + 2]
    )
  other = take(pipeline.train_batches(train, **(options | {"seed": 8})), 1)
  assert not np.array_equal(other[0]["text_id"], batches[0]["text_id"])


@pytest.fixture
def pixels(folder, data_config):
  splits = load(data_config(restval=True))
  return splits, build_vocabulary(splits, min_count=1)


@pytest.mark.slow
def test_pixels_are_the_same_with_any_number_of_processes_and_workers(pixels):
  splits, vocabulary = pixels
  options = {"batch_size": 6, "seed": 1, "vocabulary": vocabulary, "image_size": 16}
  batches = take(pipeline.train_batches(splits["train"], **options), 5)
  assert batches[0]["image"].shape == (6, 16, 16, 3) and batches[0]["image"].dtype == np.uint8
  assert_equal(take(pipeline.train_batches(splits["train"], workers=2, **options), 5), batches)
  assert_equal(
    take(pipeline.train_batches(splits["train"], start=2, prefetch=4, **options), 3), batches[2:]
  )
  for count in (2, 3):
    parts = [
      take(pipeline.train_batches(splits["train"], shard_index=i, shard_count=count, **options), 5)
      for i in range(count)
    ]
    assert_equal(joined(parts), batches)


def test_crops_are_fresh_every_time(pixels):
  splits, vocabulary = pixels
  options = {"batch_size": 21, "seed": 1, "vocabulary": vocabulary, "image_size": 16}
  first, second = take(pipeline.train_batches(splits["train"], **options), 2)
  a, b = (
    {int(t): image.tobytes() for t, image in zip(x["text_id"], x["image"], strict=True)}
    for x in (first, second)
  )
  assert all(a[caption] != b[caption] for caption in a)
  assert len(set(a.values())) == 21  # Captions of one image have crops of their own.


def test_evaluation_visits_every_row_once_and_pads_the_last_batch(pixels):
  splits, vocabulary = pixels
  train = splits["train"]
  options = {"image_size": 16, "resize": 20}
  batches = list(pipeline.image_batches(train, batch_size=4, **options))
  rows = np.concatenate([batch["row"] for batch in batches])
  assert rows.tolist() == [*range(7), -1]
  assert batches[1]["image_id"].tolist() == [*train.image_id[4:], train.image_id[6]]
  np.testing.assert_array_equal(batches[1]["image"][2], batches[1]["image"][3])
  for row, image in zip(
    rows[:7], np.concatenate([batch["image"] for batch in batches]), strict=False
  ):
    expected = images.eval_crop(images.decode(train.pixels[row], name="x"), resize=20, size=16)
    np.testing.assert_array_equal(image, expected)
  parts = [
    list(pipeline.image_batches(train, batch_size=4, shard_index=i, shard_count=2, **options))
    for i in range(2)
  ]
  assert_equal(joined(parts), batches)

  texts = list(pipeline.text_batches(train, batch_size=8, vocabulary=vocabulary, length=5))
  assert np.concatenate([batch["row"] for batch in texts]).tolist() == [*range(21), -1, -1, -1]
  assert texts[0]["text"].shape == (8, 5) and (texts[0]["text"][:, -1] == 2).all()


def test_one_shard_may_be_all_padding(loaded):
  train, _ = loaded
  batches = list(pipeline.image_batches(train, batch_size=16, shard_index=1, shard_count=2))
  assert [batch["row"].tolist() for batch in batches] == [[-1] * 8]


def test_text_features_and_labels_are_passed_on(folder, data_config):
  train = load(data_config(image="features", text="features"))["train"]
  train = dataclasses.replace(train, label=np.arange(5, dtype=np.int32) % 2)
  batch = next(pipeline.train_batches(train, batch_size=4, seed=0))
  assert "text_length" not in batch and batch["text"].dtype == np.float32
  np.testing.assert_array_equal(batch["text"], np.load(folder.path / "text.npy")[batch["text_id"]])
  label = dict(zip(train.image_id.tolist(), train.label.tolist(), strict=True))
  assert batch["label"].tolist() == [label[image] for image in batch["image_id"].tolist()]
  assert next(pipeline.text_batches(train, batch_size=4))["label"].tolist() == [0, 0, 1, 1]


def test_memory_mapped_features_travel_to_workers_by_name(tmp_path):
  array = np.random.default_rng(0).normal(size=(5000, 64)).astype(np.float32)
  np.save(tmp_path / "features.npy", array)
  matrix = np.load(tmp_path / "features.npy", mmap_mode="r")
  for part in (matrix, matrix[7:4000], matrix[7:4000][5:9]):
    content = pickle.dumps(pipeline._Mapped.of(part))
    assert len(content) < 1000
    np.testing.assert_array_equal(pipeline._Mapped.open(pickle.loads(content)), part)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_bad_during_training_is_named(pixels, workers):
  splits, vocabulary = pixels
  train = splits["train"]
  content = list(train.pixels)
  content[3] = content[3][: len(content[3]) // 2]
  train = dataclasses.replace(train, pixels=content)
  batches = pipeline.train_batches(
    train,
    batch_size=7,
    seed=0,
    vocabulary=vocabulary,
    one_caption_per_image=True,
    image_size=16,
    workers=workers,
  )
  with pytest.raises(
    UserError,
    match=f"^image {train.image_names[3]} is truncated or damaged: .*; expected a whole image$",
  ):
    next(batches)


def test_what_cannot_be_batched_is_refused_at_once(loaded):
  train, vocabulary = loaded
  with pytest.raises(
    UserError, match="config.batch_size is 22; expected 1 to 21, the captions of split train"
  ):
    pipeline.train_batches(train, batch_size=22, seed=0, vocabulary=vocabulary)
  with pytest.raises(UserError, match="config.batch_size is 8; expected 1 to 7, the images"):
    pipeline.train_batches(
      train, batch_size=8, seed=0, vocabulary=vocabulary, one_caption_per_image=True
    )
  with pytest.raises(UserError, match="batch size is 6; expected a multiple of 4"):
    pipeline.train_batches(train, batch_size=6, seed=0, vocabulary=vocabulary, shard_count=4)
  with pytest.raises(UserError, match="config.data.max_length is 1"):
    pipeline.train_batches(train, batch_size=6, seed=0, vocabulary=vocabulary, length=1)
  with pytest.raises(UserError, match="has no images: expected config.data.image"):
    pipeline.image_batches(dataclasses.replace(train, image_features=None), batch_size=2)
  with pytest.raises(ValueError, match="expected a vocabulary"):
    pipeline.text_batches(train, batch_size=2)


def test_closed_batches_say_so(loaded):
  train, vocabulary = loaded
  batches = pipeline.train_batches(train, batch_size=2, seed=0, vocabulary=vocabulary)
  next(batches)
  batches.close()
  with pytest.raises(ValueError, match="closed"):
    next(batches)
