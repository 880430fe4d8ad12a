"""What results.json holds, what chance gives, and how the table says it."""

import math
import shlex

import ml_collections
import numpy as np
import pytest

from xmr.config import base_config
from xmr.data import Split
from xmr.errors import UserError
from xmr.eval import metrics, recall, results
from xmr.storage import files


def example(seed=0, images=20, captions=(1, 2, 5, 3), width=5, noise=1):
  rng = np.random.default_rng(seed)
  owner = np.repeat(np.arange(images), np.resize(captions, images))
  image = rng.integers(-2, 3, (images, width)).astype(np.float32)
  text = image[owner] + noise * rng.integers(-1, 2, (len(owner), width)).astype(np.float32)
  return image, text, owner


def split_of(owner, texts=None):
  n = int(owner.max()) + 1
  texts = texts or [f"caption {t}" for t in range(len(owner))]
  names = [f"{j}.jpg" for j in range(n)]
  rows = [np.asarray(x, np.int32) for x in (np.arange(n), np.arange(len(owner)), owner)]
  return Split("test", *rows, names, texts, [text.split() for text in texts])


def config(tmp_path, **changes):
  made = base_config()
  made.data.cache_dir = str(tmp_path / "cache")
  made.update_from_flattened_dict({"seed": 3, "similarity": "dot", **changes})
  return made


def test_results_say_which_metrics_they_are(tmp_path):
  image, text, owner = example()
  out = tmp_path / "run"
  out.mkdir()
  found = results.report(
    image,
    text,
    split_of(owner),
    config=config(tmp_path, **{"evaluate.folds": 5}),
    step=70,
    workdir=out,
    seconds=12.3456,
  )
  assert files.read_json(out / "results.json") == found
  assert sorted(path.name for path in out.iterdir()) == ["queries.npz", "results.json"]
  said = {name: found[name] for name in ("dataset", "split", "step", "seed", "duration")}
  assert said == {"dataset": "scenes", "split": "test", "step": 70, "seed": 3, "duration": 12.346}
  assert (found["n_images"], found["n_texts"], found["similarity"]) == (20, 55, "dot")
  assert found["captions_per_image"] == {"min": 1, "mean": 2.75, "max": 5}
  assert found["protocol"] == "all 20 images and 55 texts; folds/: mean of 5 folds of 4 images"
  whole, folds = (recall(image, text, owner, folds=n, kind="dot") for n in (1, 5))
  assert (
    found["metrics"]["rsum"] == whole["rsum"] and found["metrics"]["folds/rsum"] == folds["rsum"]
  )
  assert found["ties"] == {
    "i2t": whole["i2t/ties"],
    "t2i": whole["t2i/ties"],
    "folds/i2t": folds["i2t/ties"],
    "folds/t2i": folds["t2i/ties"],
  }
  assert {"xmr", "jax", "numpy", "python", "device"} <= set(found["versions"])
  assert found["date"].endswith("+00:00") and "T" in found["date"]
  assert shlex.split(found["command"])[0] == "python" and found["device"]
  assert found["commit"] is None or len(found["commit"].removesuffix("-dirty")) == 40
  with np.load(out / "queries.npz") as queries:
    np.testing.assert_array_equal(queries["image_of_text"], owner)
    for name, n in (("i2t", 20), ("t2i", 55)):
      assert queries[f"{name}/rank"].shape == (n,)
      assert 100 * np.mean(queries[f"{name}/rank"] < 5) == pytest.approx(whole[f"{name}/r5"])


def random_recalls(owner, n_images, rounds, seed=0):
  """Recalls of orders that know nothing: every query ranks the gallery at random."""
  rng, out = np.random.default_rng(seed), []
  for _ in range(rounds):
    i2t = [rng.permutation(len(owner))[owner == j].min() for j in range(n_images)]
    t2i = [rng.integers(n_images) for _ in owner]
    out.append(metrics.both_directions(np.array(i2t), np.array(t2i)))
  return out


def test_chance_is_what_random_orders_give_and_its_noise_bounds_theirs():
  owner = np.repeat(np.arange(12), np.resize([1, 3, 5], 12))
  chance = metrics.chance(owner, n_images=12)
  rounds = random_recalls(owner, 12, 800)
  for name in ("i2t/r1", "i2t/r5", "i2t/r10", "t2i/r1", "t2i/r5", "t2i/r10", "rsum"):
    values = np.array([found[name] for found in rounds])
    assert chance[name] == pytest.approx(values.mean(), abs=4 * values.std() / 800**0.5), name
  assert np.std([found["rsum"] for found in rounds]) <= chance["rsum_deviation"]


def test_chance_is_hypergeometric_and_stays_within_a_small_gallery():
  owner = np.arange(15) // 5
  chance = metrics.chance(owner, n_images=3)
  assert chance["t2i/r1"] == pytest.approx(100 / 3)
  assert chance["t2i/r5"] == chance["t2i/r10"] == 100
  assert chance["i2t/r5"] == pytest.approx(100 * (1 - math.comb(10, 5) / math.comb(15, 5)))
  parts = metrics.chance(np.arange(60) // 5, n_images=12, folds=4)
  assert {name: parts[name] for name in chance if name != "rsum_deviation"} == pytest.approx(
    {name: value for name, value in chance.items() if name != "rsum_deviation"}
  )


def shown(image, text, owner, tmp_path, **changes):
  made = config(tmp_path, **changes)
  found = results.report(image, text, split_of(owner), config=made, step=5)
  return found, results.shown(found).splitlines()


def test_the_table_has_chance_beside_each_recall_in_80_columns(tmp_path):
  image, text, owner = example(images=30)
  found, lines = shown(image, text, owner, tmp_path, **{"evaluate.folds": 3})
  assert lines[1].split() == "R@1 (chance) R@5 (chance) R@10 (chance) medr meanr".split()
  directions = ("i2t", "image to text"), ("t2i", "text to image")
  for prefix, row in (("", 2), ("folds/", 6)):
    values = found["metrics"], found["chance"]
    for offset, (direction, name) in enumerate(directions):
      line = lines[row + offset]
      assert line.startswith(name)
      for k in (1, 5, 10):
        own, chance = (x[f"{prefix}{direction}/r{k}"] for x in values)
        assert f" {own:.1f}" in line and f"({chance:.1f})" in line
    assert f"{values[0][f'{prefix}rsum']:.1f}" in lines[row + 2]
  assert lines[5].startswith("folds/") and max(map(len, lines[1:])) <= 80
  assert any("tied queries" in line for line in lines)
  assert "noise of chance" not in "".join(lines)
  assert lines[0].endswith(", step 5")
  assert results.shown(found | {"step": None}).splitlines()[0].endswith("dot similarity")


def test_a_result_within_noise_of_chance_says_so_and_what_helps(tmp_path):
  rng = np.random.default_rng(0)
  owner = np.arange(500) // 5
  image, text = rng.normal(size=(100, 8)), rng.normal(size=(500, 8))
  found, lines = shown(image, text, owner, tmp_path)
  assert lines[-1].startswith(f"rsum {found['metrics']['rsum']:.1f} is within noise of chance (")
  assert "pretrained towers" in lines[-1] and "more pairs" in lines[-1]
  _, lines = shown(image, image[owner] + 0.5 * text, owner, tmp_path)
  assert "chance (" not in lines[-1]
  _, lines = shown(image[:2], image[[0, 1]], np.arange(2), tmp_path)
  assert "any result on 2 images" in lines[-1]


def test_a_line_of_validation_looks_like_no_term_of_a_loss():
  found = {f"{d}/r{k}": float(k) for d in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum": 32.0}
  line = results.line(found)
  assert line == "R@1/5/10 image to text 1.0/5.0/10.0, text to image 1.0/5.0/10.0, rsum 32.0"
  assert "i2t" not in line and "t2i" not in line


def test_a_run_is_refused_before_training_what_its_split_cannot_give(tmp_path):
  *_, owner = example(images=40)
  for field, value, message in (
    ("graded", True, "k is 50 but the gallery has 40 images"),
    ("folds", 3, "folds is 3; expected a divisor of the 40 images"),
    ("spice", "absent.npy", "no relevance file"),
    ("positives", "absent", "no file"),
    ("sts", "absent.csv", "no ratings file"),
    ("category", True, "config.evaluate.category needs the category of each image"),
  ):
    made = config(tmp_path, **{f"evaluate.{field}": value, "data.dir": str(tmp_path)})
    made.evaluate.k = 50 if field == "graded" else 25
    with pytest.raises(UserError, match=message):
      results.check(made, split_of(owner))
  made = config(tmp_path, **{"evaluate.consistency": True})
  with pytest.raises(UserError, match="consistency knows cosine similarity; found dot"):
    results.check(made, split_of(owner))


def test_results_of_a_locked_config_need_no_field_beyond_base_config(tmp_path):
  made = config(tmp_path)
  assert made.is_locked and isinstance(made, ml_collections.ConfigDict)
  image, text, owner = example()
  only = results.report(image, text, split_of(owner), config=made, step=None, only=("recall",))
  assert only["step"] is None and "rouge_l/i2t/ndcg" not in only["metrics"]
