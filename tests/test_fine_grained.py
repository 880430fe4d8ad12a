"""Both stages of FG-CMIR from a folder to results.json, stopped and resumed, and the parts in
between.
"""

import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import io
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from configs import fgcmir_wiki
from xmr import inspect, train
from xmr.data import labelled
from xmr.errors import UserError
from xmr.fine_grained import report, table, two_stage
from xmr.fine_grained.data import load, scale
from xmr.fine_grained.scores import area_under_roc, both_directions
from xmr.fine_grained.semantic_matching import logistic_regression, posteriors, semantic_matching
from xmr.inspect.report import report as write_report

WORDS = [f"word{i}" for i in range(24)]


def write_source(folder):
  """Writes a set of three categories that words and features tell apart."""
  rng = np.random.default_rng(0)
  folder.mkdir()
  (folder / "categories.list").write_text("a\nb\nc\n")
  features, rows = {}, []
  for split, suffix, count in (("train", "tr", 60), ("test", "te", 18)):
    label = np.arange(count) % 3
    lines = (f"{split}{i}\t{split}-image{i}\t{c + 1}\n" for i, c in enumerate(label))
    (folder / f"{split}set_txt_img_cat.list").write_text("".join(lines))
    for i, c in enumerate(label):
      own = rng.choice(WORDS[8 * c : 8 * c + 8], 12)
      rows.append({"text_id": f"{split}{i}", "text": " ".join([*own, *rng.choice(WORDS, 6)])})
    features |= {f"{m}_{suffix}": np.eye(6)[label] + rng.random((count, 6)) for m in "IT"}
  with gzip.open(folder / "texts.jsonl.gz", "wt") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
  io.savemat(folder / "raw_features.mat", features)
  (folder / "vectors.txt").write_text(
    "".join(f"{w} {' '.join(f'{x:.3f}' for x in rng.normal(size=4))}\n" for w in WORDS)
  )


def small_config(folder, variant=""):
  """Returns a config of the set in a folder; the layout knows no counts, see `make_config`."""
  config = fgcmir_wiki.get_config(variant)
  config.data.dir, config.data.cache_dir = str(folder), str(folder.parent / "cache")
  config.graph.update({"vectors": "vectors.txt", "min_count": 2, "neighbours": 3})
  config.model.dim, config.batch_size = 16, 144
  config.steps, config.evaluate.steps, config.log.steps = 12, 6, 3
  config.siamese.update({"steps": 9, "every": 3})
  config.optimizer.learning_rate = 1e-2
  config.log.progress = False
  return config


def without_counts():
  """The layout of wikipedia for a set of any size."""
  layout = labelled.LAYOUTS["wikipedia"]
  return labelled.Layout(layout.lists, {}, layout.source)


@pytest.fixture
def make_config(tmp_path, monkeypatch):
  """Writes a set; returns a function that makes its config."""
  monkeypatch.setitem(labelled.LAYOUTS, "wikipedia", without_counts())
  write_source(tmp_path / "source")

  def make(variant="", **fields):
    config = small_config(tmp_path / "source", variant)
    config.update(fields)
    return config

  return make


class Asked:
  """A Stop that is asked to stop at a step of one stage."""

  reason = "test"

  def __init__(self, step=None):
    self.step = step

  def wanted(self, step):
    return step == self.step


def scores_of(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_command_trains_both_stages_and_leaves_figures_and_pictures(
  make_config, tmp_path, capsys
):
  results = train.train_and_evaluate(make_config(), tmp_path / "run")
  written = json.loads((tmp_path / "run" / "results.json").read_text())
  assert written["metrics"] == results["metrics"]
  assert (
    results["metrics"]["map"] == (results["metrics"]["i2t/map"] + results["metrics"]["t2i/map"]) / 2
  )
  assert results["metrics"]["map"] > results["baselines"]["random"]["map"] + 0.1
  assert {"semantic_matching", "semantic_matching_words"} <= set(results["baselines"])
  for file in (
    "precision_recall.png",
    "hardness.png",
    "hardness.md",
    "siamese/metrics.jsonl",
    "metrics.jsonl",
  ):
    assert (tmp_path / "run" / file).stat().st_size
  assert (tmp_path / "run" / "hardness.md").read_text().count("- g = ") == 10
  assert any("val/auc" in line for line in scores_of(tmp_path / "run" / "siamese"))
  said = capsys.readouterr()
  assert "semantic matching" in said.out
  for name in (make_config().siamese.loss, make_config().loss.name):
    assert f"the step with {name}" in said.out + said.err
  with np.load(tmp_path / "run" / "queries.npz") as arrays:
    assert arrays["i2t/map"].mean() == pytest.approx(results["metrics"]["i2t/map"])
  metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
  again = train.train_and_evaluate(make_config(), tmp_path / "run", eval_only=True)
  assert again["metrics"] == pytest.approx(results["metrics"], abs=1e-6)
  assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


def test_eval_only_without_a_run_is_refused(make_config, tmp_path):
  with pytest.raises(UserError, match="--eval_only: .*run has no checkpoints; train first"):
    train.train_and_evaluate(make_config("base"), tmp_path / "run", eval_only=True)
  assert not (tmp_path / "run").exists()


def test_features_in_place_of_words_need_no_graph(make_config, tmp_path):
  config = make_config("lda", steps=96)
  results = two_stage.run(config, tmp_path / "run", Asked(), baselines=False)
  assert (
    results["details"]["words"] is None
    and results["metrics"]["map"] > results["baselines"]["random"]["map"] + 0.1
  )
  config.graph.layers = 2
  with pytest.raises(
    UserError, match="config.graph.signal=features .* expected config.graph.layers=0"
  ):
    load(config)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["siamese", "pairs"])
def test_a_stopped_run_goes_on_to_the_same_end(make_config, tmp_path, stage):
  config = make_config()
  straight = two_stage.run(config, tmp_path / "straight", Asked(), baselines=False)
  # Stage 1 has 9 steps, so step 10 is of stage 2 alone.
  assert (
    two_stage.run(config, tmp_path / "run", Asked(4 if stage == "siamese" else 10), baselines=False)
    is None
  )
  assert (tmp_path / "run" / "checkpoints").exists() == (stage == "pairs")
  resumed = two_stage.run(config, tmp_path / "run", Asked(), baselines=False)
  assert resumed["metrics"] == pytest.approx(straight["metrics"], abs=1e-6)
  validated = [
    [line["step"] for line in scores_of(tmp_path / name) if "val/map" in line]
    for name in ("run", "straight")
  ]
  assert validated == [[6, 12], [6, 12]]


@pytest.mark.slow
def test_the_table_has_a_row_per_variant_and_tests_against_base(make_config, tmp_path, monkeypatch):
  config = make_config("table")
  with config.ignore_type():
    config.table.update({"variants": ("base", "hardness", "lda"), "seeds": (0, 1)})
  config.graph.min_count, config.model.dim, config.steps = 2, 16, 6
  results = train.train_and_evaluate(config, tmp_path / "table")
  assert (
    set(results["rows"]) == {"base", "hardness", "lda"} and results["rows"]["base"]["map"]["n"] == 2
  )
  assert set(results["tests"]) == {
    "hardness",
    "lda",
    "semantic_matching",
    "semantic_matching_words",
  }
  for test in results["tests"].values():
    assert test["map"]["low"] <= test["map"]["difference"] <= test["map"]["high"]
    assert 0 < test["map"]["p"] <= test["map"]["p_holm"] <= 1
  text = (tmp_path / "table" / "table.md").read_text()
  assert all(
    f"| {row} |" in text for row in ("base", "hardness", "semantic matching, words", "random")
  )
  assert (
    "than base at 0.05 after Holm's adjustment" in text
    and " against semantic matching, words: image query " in text
  )
  assert all(
    (tmp_path / "table" / file).stat().st_size
    for file in ("precision_recall.png", "hardness.png", "hardness.md")
  )
  assert sorted(p.name for p in (tmp_path / "table" / "seed1").iterdir()) == [
    "base",
    "hardness",
    "lda",
    "siamese",
  ]
  form = json.loads((tmp_path / "table" / "seed1" / "hardness" / "config.json").read_text())
  assert form["loss.form"] == "h" and form["seed"] == 1
  monkeypatch.setattr(two_stage, "run", None)  # Finished runs are read.
  assert train.train_and_evaluate(config, tmp_path / "table")["rows"] == results["rows"]


def test_paired_tests_see_a_row_that_is_better_on_every_query():
  rng = np.random.default_rng(0)
  base = [{"i2t/map": rng.random(40), "t2i/map": rng.random(40)} for _ in range(3)]
  found = {
    "base": base,
    "fine_grained": [{name: x + 0.01 for name, x in run.items()} for run in base],
  }
  rows = {name: table.mean_of(runs) for name, runs in found.items()}
  rows["semantic_matching"] = {"i2t/map": rng.random(40), "t2i/map": rng.random(40)}
  tests = table.tests(found, rows)
  assert tests["fine_grained"]["map"]["difference"] == pytest.approx(0.01)
  assert (
    tests["fine_grained"]["map"]["p_holm"] < 0.01 and tests["fine_grained"]["map"]["p_seeds"] < 0.01
  )
  assert tests["semantic_matching"]["map"]["p"] > 0.01 and np.isnan(
    tests["semantic_matching"]["map"]["p_seeds"]
  )


def test_the_best_variant_is_held_against_two_regressions():
  rng = np.random.default_rng(0)
  run = {"i2t/map": rng.random(40), "t2i/map": rng.random(40)}
  found = {
    "base": [run],
    "cross_entropy": [{"i2t/map": run["i2t/map"] + 0.02, "t2i/map": run["t2i/map"]}],
  }
  rows = {name: table.mean_of(runs) for name, runs in found.items()}
  rows["semantic_matching_words"] = {"i2t/map": run["i2t/map"], "t2i/map": run["t2i/map"] + 0.01}
  best = table.best_against(found, rows)
  assert best["row"] == "cross_entropy"
  differences = [best[figure]["difference"] for figure in ("i2t/map", "t2i/map", "map")]
  np.testing.assert_allclose(differences, [0.02, -0.01, 0.005], atol=1e-9)
  assert max(best["i2t/map"]["p"], best["t2i/map"]["p"]) < 0.01
  assert table.best_against(found, {"base": run}) == {}


def test_an_unknown_row_of_the_table_is_named(make_config, tmp_path):
  config = make_config("table")
  with config.ignore_type():
    config.table.variants = ("base", "other")
  with pytest.raises(
    UserError, match="config.table.variants holds 'other'; expected some of base, fine_grained"
  ):
    train.train_and_evaluate(config, tmp_path / "table")


def test_hardness_is_low_for_alike_positives_and_for_unlike_negatives():
  similarity = jnp.asarray([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
  batch = {
    "text": jnp.asarray([2, 0]),
    "item": jnp.asarray([1, 0, 2]),
    "text_of_pair": jnp.asarray([1, 1, 0, 0]),
    "item_of_pair": jnp.asarray([1, 0, 0, 2]),
    "positive": jnp.asarray([True, True, False, True]),
  }
  np.testing.assert_allclose(two_stage.hardness(similarity, batch), [0, 0.2, 0.3, 0], atol=1e-6)


def test_area_under_roc_equals_scikit_learn_with_ties():
  rng = np.random.default_rng(0)
  scores, positive = rng.integers(0, 9, 200), rng.random(200) < 0.3
  assert area_under_roc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_logistic_regression_equals_scikit_learn():
  rng = np.random.default_rng(0)
  x, label = rng.normal(size=(90, 4)), rng.integers(0, 3, 90)
  theirs = (
    LogisticRegression(C=1 / (90 * 0.01), tol=1e-8, max_iter=1000).fit(x, label).predict_proba(x)
  )
  np.testing.assert_allclose(logistic_regression(x, label, l2=0.01)(x), theirs, atol=2e-3)


def test_semantic_matching_is_perfect_where_both_classifiers_are():
  label = {name: np.arange(12) % 3 for name in ("train", "val", "test")}
  features = {name: np.eye(3)[x] * 5 for name, x in label.items()}
  found = semantic_matching(posteriors(features, features, label), label["test"])
  assert found["map"] == pytest.approx(1) and found["image_accuracy"] == 1


def test_image_scales_use_the_training_part_alone():
  rng = np.random.default_rng(0)
  images = {
    name: rng.random((20, 3)) * (5 if name == "test" else 1) for name in ("train", "val", "test")
  }
  found = scale(images, "root_standard")
  np.testing.assert_allclose(found["train"].mean(axis=0), 0, atol=1e-6)
  np.testing.assert_allclose(found["train"].std(axis=0), 1, atol=1e-5)
  root = np.sqrt(images["train"])
  np.testing.assert_allclose(
    found["test"], (np.sqrt(images["test"]) - root.mean(axis=0)) / root.std(axis=0), rtol=1e-4
  )


def test_random_scores_give_the_share_of_relevant_items():
  label = np.repeat(np.arange(10), 50)
  assert report.random_maps(label)["map"] == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
  "field, value, message",
  [
    (
      "loss.name",
      "imc",
      "config.loss.name is 'imc'; expected one of pairwise_similarity, pair_cross_entropy,",
    ),
    ("loss.form", "other", "form"),
    ("siamese.loss", "hinge", "config.siamese.loss is 'hinge'; expected one of pair_cross_entropy"),
    ("siamese.dropout", 1.0, "config.siamese.dropout is 1.0; expected from 0 to below 1"),
    ("pairs.scheme", "all", "config.pairs.scheme is 'all'; expected one of"),
    ("pairs.image_scale", "log", "config.pairs.image_scale is 'log'; expected one of"),
    ("graph.bias", "edge", "config.graph.bias is 'edge'; expected one of"),
    (
      "pairs.activation",
      "gelu",
      "config.pairs.activation is 'gelu'; expected one of none, relu, tanh",
    ),
    (
      "pairs.normalize",
      "rows",
      "config.pairs.normalize is 'rows'; expected one of none, text, both",
    ),
    ("pairs.head_start", 0.0, "config.pairs.head_start is 0.0; expected more than 0"),
    ("pairs.unit_dropout", 1.0, "config.pairs.unit_dropout is 1.0; expected from 0 to below 1"),
    ("graph.dropout", -0.1, "config.graph.dropout is -0.1; expected from 0 to below 1"),
    ("evaluate.ema", 0.9, "config.evaluate.ema is 0.9, which config.task=fine_grained does not"),
    ("init", "runs/a", "config.init is .*runs/a', which config.task=fine_grained does not know"),
  ],
)
def test_a_wrong_field_is_named_before_the_run_folder_exists(
  make_config, tmp_path, field, value, message
):
  config = make_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message):
    train.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_results_of_another_length_or_other_data_are_not_those_of_a_run(make_config, tmp_path):
  def config(**fields):
    made = make_config("base", steps=6, **fields)
    made.optimizer.schedule = "constant"
    return made

  folder = tmp_path / "run"
  results = two_stage.run(config(), folder, Asked(), baselines=False)
  digests = load(config()).digests
  assert table.finished(config(), folder, digests)["metrics"] == results["metrics"]
  longer, shorter = config(), config()
  longer.steps, shorter.steps = 12, 3
  assert table.finished(longer, folder, digests) is None
  assert table.finished(shorter, folder, digests) is None
  with pytest.raises(UserError, match="was trained for 6 steps; .* asks for 3"):
    two_stage.run(shorter, folder, Asked(), baselines=False)
  other = {**digests, "train": "another"}
  with pytest.raises(UserError, match="holds a run on other data .* of train differ"):
    table.finished(config(), folder, other)


def test_a_run_is_inspected_as_evaluation_sees_it(make_config, tmp_path):
  config = make_config("base", steps=6)
  folder = tmp_path / "run"
  two_stage.run(config, folder, Asked(), baselines=False)
  run, split = inspect.load(folder), load(config).splits["test"]
  image, text = run.embeddings(split)
  results = json.loads((folder / "results.json").read_text())
  found = both_directions(image, text, split.label)
  assert found["map"] == pytest.approx(results["metrics"]["map"], abs=1e-6)
  # Without its data, from raw features and plain text.
  exported = inspect.load(run.export(tmp_path / "export"))
  np.testing.assert_allclose(exported.encode_image(split.image_features), image, atol=1e-5)
  np.testing.assert_allclose(exported.encode_text(split.texts), text, atol=1e-5)
  scores, indices = exported.search(text, image, 3)
  np.testing.assert_allclose(scores[0], np.sort(text[0] @ image.T)[::-1][:3], rtol=1e-4)
  assert exported.unknown_words("word1 zebra") == (["zebra"], ["word1", "zebra"])
  assert "wikipedia" in repr(run) and "best val/map" in repr(run)
  with pytest.raises(UserError, match="none of the 24 words of the graph"):
    run.encode_text("zebra")
  page = write_report(folder, queries=1).read_text()
  assert "wikipedia, split test: 18 images and 18 captions" in page and "t2i/map" in page


def test_bad_data_leaves_nothing_in_the_folder_of_the_run(make_config, tmp_path):
  config = make_config("base")
  (tmp_path / "source" / "vectors.txt").unlink()
  with pytest.raises(UserError, match="vectors.txt"):
    two_stage.run(config, tmp_path / "run", Asked())
  assert not (tmp_path / "run").exists()
