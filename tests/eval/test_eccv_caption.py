"""Extra positives against one query at a time, on invented and on ECCV Caption's own files."""

import gzip
import json

import numpy as np
import pytest

from xmr.errors import UserError
from xmr.eval import eccv_caption


def write(folder, i2t, t2i, name="eccv"):
  (folder / f"{name}_image_to_caption.json").write_text(json.dumps(i2t))
  (folder / f"{name}_caption_to_image.json").write_text(json.dumps(t2i))


def invented(folder, seed=0, images=20, texts=50):
  rng = np.random.default_rng(seed)
  image_id, text_id = rng.permutation(1000)[:images], rng.permutation(1000)[:texts]
  i2t = {
    str(i): rng.choice(text_id, rng.integers(1, 9), replace=False).tolist() for i in image_id[:12]
  }
  t2i = {
    str(t): rng.choice(image_id, rng.integers(1, 5), replace=False).tolist() for t in text_id[:31]
  }
  write(folder, i2t, t2i)
  return i2t, t2i, image_id, text_id, rng.normal(size=(images, 6)), rng.normal(size=(texts, 6))


def slow(queries, gallery, query_id, gallery_id, answers):
  """Musgrave's mAP@R, R-Precision and R@K, one query at a time."""
  average, precision, recall = [], [], {1: [], 5: [], 10: []}
  gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
  for identity, items in answers.items():
    score = gallery @ queries[list(query_id).index(int(identity))]
    ranked = [int(gallery_id[x]) for x in np.argsort(-score)]
    hits = [x in items for x in ranked]
    size = len(set(items))
    average.append(sum(hits[r] * sum(hits[: r + 1]) / (r + 1) for r in range(size)) / size)
    precision.append(sum(hits[:size]) / size)
    for k in recall:
      recall[k].append(any(hits[:k]))
  names = ["map_at_r", "r_precision", "r1", "r5", "r10"]
  return dict(
    zip(names, [100 * np.mean(x) for x in (average, precision, *recall.values())], strict=True)
  )


def test_equals_one_query_at_a_time(tmp_path):
  i2t, t2i, image_id, text_id, image, text = invented(tmp_path)
  positives = eccv_caption.load_positives(tmp_path, "eccv", image_id=image_id, text_id=text_id)
  metrics = eccv_caption.retrieval(image, text, positives)
  expected = {
    f"i2t/{name}": value for name, value in slow(image, text, image_id, text_id, i2t).items()
  }
  expected |= {
    f"t2i/{name}": value for name, value in slow(text, image, text_id, image_id, t2i).items()
  }
  assert metrics == pytest.approx(expected)


def test_a_repeated_positive_counts_once(tmp_path):
  write(tmp_path, {"1": [5, 5, 6]}, {"5": [1, 1], "6": [2]})
  positives = eccv_caption.load_positives(tmp_path, "eccv", image_id=[1, 2], text_id=[5, 6, 7])
  assert list(positives["i2t"].item) == [0, 1]
  image, text = np.eye(2), np.array([[1, 0], [0.9, 0.1], [0, 1]])
  metrics = eccv_caption.retrieval(image, text, positives, recall_at=(1,))
  assert metrics["i2t/map_at_r"] == 100
  assert metrics["t2i/r1"] == 50


def test_a_positive_outside_the_gallery_counts_but_is_never_found(tmp_path, monkeypatch):
  monkeypatch.setattr(eccv_caption, "MOST_ABSENT", 0.5)
  write(tmp_path, {"1": [5, 99]}, {"5": [1]})
  positives = eccv_caption.load_positives(tmp_path, "eccv", image_id=[1, 2], text_id=[5, 6])
  metrics = eccv_caption.retrieval(np.eye(2), np.eye(2), positives, recall_at=(1,))
  assert metrics["i2t/map_at_r"] == 50
  assert metrics["i2t/r_precision"] == 50


def coco(shared):
  with gzip.open(shared / "data/coco5k_text/dataset_coco_test5k.json.gz", "rt") as file:
    images = json.load(file)["images"]
  image_id = np.array([image["cocoid"] for image in images])
  return image_id, np.array([sentid for image in images for sentid in image["sentids"]])


@pytest.mark.parametrize(
  "name, counts",
  [
    ("eccv", (1261, 1332, 17.88, 8.47)),
    ("cxc", (5000, 24972, None, None)),
    ("original", (5000, 25000, 5, 1)),
  ],
)
def test_real_files_hold_the_published_counts(shared, name, counts):
  image_id, text_id = coco(shared)
  folder = shared / "data/eccv_caption"
  positives = eccv_caption.load_positives(folder, name, image_id=image_id, text_id=text_id)
  assert (len(positives["i2t"].query), len(positives["t2i"].query)) == counts[:2]
  for direction, mean in zip(("i2t", "t2i"), counts[2:], strict=True):
    if mean:
      assert np.diff(positives[direction].start).mean() == pytest.approx(mean, abs=0.005)


def test_true_pairs_of_coco_find_each_other(shared):
  image_id, text_id = coco(shared)
  folder = shared / "data/eccv_caption"
  rng = np.random.default_rng(0)
  image = rng.normal(size=(5000, 32)).astype(np.float32)
  text = np.repeat(image, 5, axis=0)
  original = eccv_caption.load_positives(folder, "original", image_id=image_id, text_id=text_id)
  metrics = eccv_caption.retrieval(image, text, original)
  assert metrics == dict.fromkeys(metrics, 100.0)
  eccv = eccv_caption.load_positives(folder, "eccv", image_id=image_id, text_id=text_id)
  metrics = eccv_caption.retrieval(image, text, eccv)
  assert metrics["i2t/r1"] > 90
  assert metrics["i2t/map_at_r"] < 60  # the five own captions are among 18 positives


def test_bad_files_are_one_clear_error(tmp_path):
  with pytest.raises(UserError, match="eccv_image_to_caption.json"):
    eccv_caption.load_positives(tmp_path, "eccv", image_id=[1], text_id=[5])
  write(tmp_path, {"2": [5]}, {"5": [1]})
  with pytest.raises(UserError, match="image 2 is not among the 1 images"):
    eccv_caption.load_positives(tmp_path, "eccv", image_id=[1], text_id=[5])
  write(tmp_path, {"1": [5]}, {"5": [2, 1]})
  with pytest.raises(UserError, match="1 of 2 image ids are not in the split, such as 2;"):
    eccv_caption.load_positives(tmp_path, "eccv", image_id=[1], text_id=[5])
  write(tmp_path, {"1": []}, {"5": [1]})
  with pytest.raises(UserError, match="image 1 has no positives"):
    eccv_caption.load_positives(tmp_path, "eccv", image_id=[1], text_id=[5])
  with pytest.raises(UserError, match="image ids repeat"):
    eccv_caption.load_positives(tmp_path, "eccv", image_id=[1, 1], text_id=[5])
  for content, message in (
    ("{", "not JSON"),
    ("[" * 200_000, "nested too deeply"),
    ("[]", "expected {query id"),
    ("{}", "holds no queries"),
    ('{"one": [5]}', "expected {query id"),
    ('{"1": 5}', "expected {query id"),
    ('{"1": [1e400]}', "expected {query id"),
    ('{"1": [' + "9" * 40 + "]}", "expected {query id"),
  ):
    (tmp_path / "eccv_image_to_caption.json").write_text(content)
    with pytest.raises(UserError, match=message):
      eccv_caption.load_positives(tmp_path, "eccv", image_id=[1], text_id=[5])


def test_too_small_a_gallery_is_one_clear_error(tmp_path):
  write(tmp_path, {"1": [5]}, {"5": [1]})
  positives = eccv_caption.load_positives(tmp_path, "eccv", image_id=[1], text_id=[5, 6])
  with pytest.raises(UserError, match="10 results are needed"):
    eccv_caption.retrieval(np.ones((1, 2)), np.ones((2, 2)), positives)
