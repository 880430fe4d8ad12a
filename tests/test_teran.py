"""A run on regions and words, small, from its files to its results: train, resume, evaluate, look
inside; and what is said of files and configs that do not fit.
"""

import ast
import json
import pathlib

import numpy as np
import pytest
from small_run import parameters

from configs import teran_flickr
from xmr import checkpoint, data, encode, inspect, parallel, search, train
from xmr.config import validate
from xmr.errors import UserError
from xmr.eval import alignment
from xmr.experiment import prepare
from xmr.inspect import matches, report
from xmr.ops.alignment import Tokens

N, REGIONS, F = 48, 4, 6
MLP = {"model.text.name": "mlp", "model.text.word_dim": None}
SMALL_TERAN = {
  "model.image.layers": 0,
  "model.text.layers": 1,
  "model.text.heads": 2,
  "model.shared_layers": 0,
  "optimizer.decay_epochs": 1.0,
}
ALL = {"evaluate.graded": True, "evaluate.shortlist": 4}
WORDS = "red green blue dog cat house tree car".split()


def write_folder(folder):
  """A set in Karpathy's layout: image i shows two things, its captions name both; regions of things
  lie around directions of their own.
  """
  rng = np.random.default_rng(0)
  things = rng.normal(size=(len(WORDS), F))
  images, sentences, regions = [], 0, rng.normal(size=(N, REGIONS, F)) * 0.3
  for i in range(N):
    shown = rng.choice(len(WORDS), 2, replace=False)
    for place, thing in zip(rng.choice(REGIONS - 1, 2, replace=False), shown, strict=True):
      regions[i, place] += things[thing]
    raw = [f"a {WORDS[a]} and a {WORDS[b]}" for a, b in (shown, shown[::-1])]
    captions = [
      {"raw": text, "tokens": text.split(), "sentid": sentences + k, "imgid": i}
      for k, text in enumerate(raw)
    ]
    sentences += 2
    split = "val" if i % 6 == 4 else "test" if i % 6 == 5 else "train"
    ids = [caption["sentid"] for caption in captions]
    images.append(
      {
        "filename": f"{i}.jpg",
        "imgid": i,
        "split": split,
        "sentids": ids,
        "sentences": captions,
      }
    )
  (folder / "dataset_small.json").write_text(json.dumps({"images": images, "dataset": "small"}))
  np.save(folder / "regions.npy", regions.astype(np.float16))
  np.save(folder / "mask.npy", np.arange(REGIONS) < 3 + (np.arange(N) % 2)[:, None])
  return folder


def small(folder, variant="flickr8k_mh", **changes):
  config = teran_flickr.get_config(variant)
  fields = {
    "data.name": "karpathy",
    "data.dir": str(folder),
    "data.cache_dir": str(folder / "cache"),
    "data.image_features": "regions.npy",
    "data.image_mask": "mask.npy",
    "data.max_length": 0,
    "vocabulary.glove": "",
    "vocabulary.min_count": 1,
    "model.dim": 8,
    "model.text.word_dim": 6,
    "batch_size": 8,
    "eval_batch_size": 8,
    "epochs": 0.0,
    "steps": 6,
    "warmup.epochs": 0.0,
    "warmup.steps": 2,
    "optimizer.schedule": "constant",
    "evaluate.epochs": 0.0,
    "evaluate.steps": 3,
    "evaluate.k": 3,
    "checkpoint.steps": 0,
    "log.tensorboard": False,
    "log.progress": False,
    "picture": False,
  }
  given = {key: value for key, value in (fields | changes).items() if value is not None}
  config.update_from_flattened_dict(given)
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp("regions"))


@pytest.fixture(scope="module")
def run(folder):
  """A run that trained six steps and was scored in every way."""
  workdir = folder / "run"
  return workdir, train.train_and_evaluate(small(folder, **ALL), workdir)


@pytest.mark.slow
def test_a_run_resumes(folder, run):
  for steps in (3, 6):
    train.train_and_evaluate(small(folder, steps=steps), folder / "parts")
  np.testing.assert_equal(parameters(run[0], 6), parameters(folder / "parts", 6))


def test_a_run_is_scored_by_alignments(folder, run):
  workdir, results = run
  metrics = results["metrics"]
  assert results["similarity"] == "symmetric_mean"
  assert {"i2t/r1", "shortlist/t2i/r1_lost", "shortlist/i2t/missed", "rsum"} <= set(metrics)
  assert {f"{task}/self_information" for task in ("i2t", "t2i", "i2i", "t2t")} <= set(metrics)
  again = train.train_and_evaluate(small(folder, **ALL), workdir, eval_only=True)
  assert again["metrics"]["rsum"] == metrics["rsum"]


@pytest.mark.parametrize(
  ("variant", "changes"),
  [
    ("flickr8k_hn", {}),
    ("flickr8k_mh", {"loss.name": "sigmoid", "loss.kind": "MrAVGw", "similarity": "cosine"}),
    *(
      pytest.param(*each, marks=pytest.mark.slow)
      for each in (
        ("flickr8k_f_hn", {"loss.kind": "MrSw", "similarity": "MrSw"}),
        ("flickr8k_pooled", {}),
        ("flickr8k_mh", {"loss.name": "info_nce", "loss.kind": "MwSr"}),
        ("flickr8k_f_teran", {"loss.diagonal": "released"}),
        ("flickr8k_mh", {"model.text.name": "transformer", "model.shared_layers": 1}),
      )
    ),
  ],
)
def test_every_loss_takes_a_step_on_tokens(folder, variant, changes, tmp_path):
  config = small(folder, variant, steps=1, **{"warmup.steps": 0, **changes})
  results = train.train_and_evaluate(config, tmp_path)
  assert results["step"] == 1 and results["similarity"] == config.similarity
  _, variables, _ = checkpoint.load(tmp_path)
  assert all(np.isfinite(x).all() for x in checkpoint.flatten(variables).values())


def test_cells_of_a_grid_are_regions_in_row_order(folder):
  regions = np.load(folder / "regions.npy")
  np.save(folder / "grid.npy", regions.reshape(N, 2, 2, F))
  splits = data.load(small(folder, **{"data.image_features": "grid.npy"}))
  expected = regions[[i for i in range(N) if i % 6 == 5]]
  np.testing.assert_array_equal(splits["test"].image_features, expected)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.image_features": "no.npy"}, r"there is no .*no.npy; expected a folder of this tree"),
    (
      {"data.image_features": "flat.npy"},
      r"shape \(48, 24\); expected three dimensions, \(48, reg",
    ),
    ({"data.image_features": "short.npy"}, "short.npy has 47 rows; expected 48, one per imgid"),
    ({"data.image_mask": "empty.npy"}, r"no region in row 5 \(imgid 5; 1 such rows\)"),
    ({"data.image_mask": "wide.npy"}, r"bool of shape \(48, 5\); expected bool of shape \(48, 4\)"),
    ({"data.image_mask": "regions.npy"}, r"holds float16 of shape .*; expected bool of shape"),
    ({"data.image_features_scale": "row"}, "image_features_scale is 'row'; expected none"),
  ],
)
def test_files_that_do_not_fit_are_one_error(folder, changes, message):
  regions, mask = np.load(folder / "regions.npy"), np.load(folder / "mask.npy")
  np.save(folder / "flat.npy", regions.reshape(N, -1))
  np.save(folder / "short.npy", regions[1:])
  np.save(folder / "empty.npy", mask & (np.arange(N) != 5)[:, None])
  np.save(folder / "wide.npy", np.ones((N, REGIONS + 1), bool))
  with pytest.raises(UserError, match=message):
    data.load(small(folder, **changes))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"data.image": "features", "model.image.name": "linear"},
      "config.loss max_of_hinges takes tokens, but config.model.image.name is 'linear', which "
      "gives none; expected one of regions, clip_vit, siglip_vit, dinov2",
    ),
    (
      {"data.text": "features", "data.text_features": "t.npy", **MLP},
      "config.loss max_of_hinges takes tokens, but config.model.text.name is 'mlp'",
    ),
    (
      {"data.image": "features", "model.image.name": "linear", "loss.kind": "dot"},
      "config.similarity symmetric_mean takes tokens, but config.model.image.name is 'linear'",
    ),
    ({"model.image.name": "linear"}, "config.data.image is 'regions' but config.model.image.name"),
    ({"loss.kind": "MrMw"}, "config.loss.kind is 'MrMw'; expected one of cosine, dot, order, MrSw"),
  ],
)
def test_losses_and_encoders_that_do_not_fit_are_one_error(folder, changes, message):
  with pytest.raises(UserError, match=message):
    validate(small(folder, **changes))


def test_tokens_are_mined_in_the_batch_alone(folder, tmp_path):
  config = small(folder, "flickr8k_hn", **{"mining.scope": "train"})
  with pytest.raises(UserError, match="scope is 'train' but loss hard_negative compares tokens"):
    train.train_and_evaluate(config, tmp_path)


def test_heads_that_do_not_divide_the_width_are_one_error(folder, tmp_path):
  config = small(folder, **{"model.shared_layers": 1, "model.shared_heads": 3})
  with pytest.raises(
    UserError, match="shared_heads is 3; expected a divisor of config.model.dim, 8"
  ):
    prepare(config, tmp_path)


def test_align_says_which_region_a_word_matched(folder, run):
  loaded = inspect.load(run[0])
  regions, mask = np.load(folder / "regions.npy"), np.load(folder / "mask.npy")
  cells = loaded.align(regions[4], "a red house", mask[4])
  assert cells.shape == (REGIONS, 3) and np.isnan(cells[~mask[4]]).all()
  image = loaded.model.apply(loaded.variables, regions[4:5], mask[4:5], method="image_tokens")
  text, _ = matches.tokens(loaded, ["a red house"])
  expected = np.asarray(image.x)[0] @ text.x[0][1:4].T
  np.testing.assert_allclose(cells[mask[4]], expected[mask[4]], rtol=1e-5)
  with pytest.raises(UserError, match="no word of 'zebra gnu' is in the vocabulary"):
    loaded.align(regions[4], "zebra gnu")
  with pytest.raises(UserError, match=r"shape \(4,\) and 0 regions; expected \(4,\) with at least"):
    loaded.align(regions[4], "a red house", mask[4] & False)
  with pytest.raises(UserError, match=r"shape \(2, 4, 6\); expected the floats \[R, F\]"):
    loaded.align(regions[:2], "a red house")


def test_search_and_pictures_of_matches(folder, run):
  loaded = inspect.load(run[0])
  regions = np.load(folder / "regions.npy").astype(np.float32)
  scores, found = loaded.search(["a red house", "a dog"], regions, k=3)
  assert scores.shape == found.shape == (2, 3) and (np.diff(scores, axis=1) <= 0).all()
  with pytest.raises(
    UserError, match=r"tokens; found float32 of shape \(3, 8\); expected the floats \[N, R, F\]"
  ):
    loaded.search(["a dog"], np.ones((3, 8), np.float32))
  with loaded.config.unlocked():
    loaded.config.similarity = "MrSw"
  # One-sided kinds sum over the query's tokens, as in evaluation.
  for items, task in ((regions, "i2i"), (["a red house", "a dog", "a cat and a tree"], "t2t")):
    embedded = matches.tokens(loaded, items)[0]
    wanted = alignment.top_k(embedded, embedded, 3, form="MrSw", task=task)
    for found, expected in zip(loaded.search(items, items, k=3), wanted, strict=True):
      np.testing.assert_array_equal(found, expected)
  split = data.load(loaded.config)["test"]
  rank, first = np.array([0, 5, 2, 0]), np.array([[0], [3], [2], [1]])
  hits, misses = matches.hits_and_misses(rank, np.array([0, 0, 1, 1]), first, n=2)
  assert hits == [(0, 0), (1, 3)] and misses == [(3, 1), (0, 1), (2, 2), (1, 2)]
  figure = matches.drawn(loaded, split, hits + misses[:2])
  shown = [axis.get_xlabel() for axis in figure.axes]
  assert sum(label.endswith(".jpg") for label in shown) == 4
  assert any(label.startswith(split.tokens[0][1]) for label in shown)


def test_search_leaves_out_what_the_mask_leaves_out(folder, run, capsys):
  loaded = inspect.load(run[0])
  regions, mask = np.load(folder / "regions.npy"), np.load(folder / "mask.npy")
  found = loaded.search(["a red house"], (regions, mask), k=N)
  other = np.where(mask[..., None], regions, np.float16(9))
  for a, b in zip(found, loaded.search(["a red house"], (other, mask), k=N), strict=True):
    np.testing.assert_array_equal(a, b)
  assert np.any(found[0] != loaded.search(["a red house"], other, k=N)[0])
  arguments = [f"--workdir={run[0]}", f"--gallery={folder / 'regions.npy'}", "-k", "2"]
  search.main(["search", *arguments, f"--mask={folder / 'mask.npy'}", "a red house"])
  lines = capsys.readouterr().out.splitlines()
  assert [line.rpartition(":")[2] for line in lines] == list(map(str, found[1][0, :2]))
  search.main(["search", *arguments, f"--image={folder / 'regions.npy'}:3"])
  assert len(capsys.readouterr().out.splitlines()) == 2
  for given, message in (
    ((regions, mask[:, :2]), r"mask of regions is bool of shape \(48, 2\); expected bool of shape"),
    ((regions, mask & (np.arange(N) != 7)[:, None]), "image 7 has no region, its mask is empty"),
    (regions[..., :3], r"regions of 3 numbers; .* was trained on 6"),
  ):
    with pytest.raises(UserError, match=message):
      loaded.search(["a dog"], given)


@pytest.mark.slow
def test_padding_is_in_ranking_what_it_was_in_training(folder, tmp_path):
  config = small(folder, "f_hn_released", steps=1, **{"warmup.steps": 0, **SMALL_TERAN})
  train.train_and_evaluate(config, tmp_path)
  image, text = inspect.load(tmp_path).embeddings(data.load(config)["test"])
  assert image.padding == text.padding == "zero"


def test_the_report_shows_matches_of_hits_and_misses(folder, run):
  html = report.report(run[0], out=folder / "report.html", queries=1).read_text()
  assert "Which word matched which region" in html and "data:image/png;base64," in html
  assert "shortlist/i2t/missed" in html


def test_tokens_beyond_the_memory_of_the_machine_say_what_to_set():
  encoded = Tokens(np.zeros((1, 30, 256), np.float32), np.ones((1, 30), bool))
  encode.check_memory(encoded, 1000, "text")
  with pytest.raises(
    UserError, match="30 words of 256 numbers, take .* set config.model.dim lower"
  ):
    encode.check_memory(encoded, 10**11, "text")


@pytest.mark.parametrize(
  ("budget", "memory", "message"),
  [
    (60, 10**12, "one image of 4 regions and one text of 7 words have 0 MB of products; expected"),
    (
      10**8,
      10**4,
      "a step of 64 images of 4 regions and texts of 7 words, tokens of 8 numbers, takes more "
      "than .* per device.*: set config.batch_size or config.model.dim lower",
    ),
  ],
)
def test_a_step_beyond_the_memory_says_what_to_set(
  folder, tmp_path, monkeypatch, budget, memory, message
):
  monkeypatch.setattr(encode, "BUDGET", budget)
  monkeypatch.setattr(parallel, "host_memory", lambda: memory)
  monkeypatch.setattr(train, "compiled", None)
  with pytest.raises(UserError, match=message):
    train.train_and_evaluate(small(folder, batch_size=64), tmp_path)


def executed(path):
  """Executes the code cells of a notebook in this process; returns what they display."""
  shown, names = [], {}
  names["display"] = shown.append
  for number, cell in enumerate(json.loads(path.read_text())["cells"]):
    if cell["cell_type"] != "code":
      continue
    tree = ast.parse("".join(cell["source"]).replace("%matplotlib inline", ""))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    if last is not None:
      shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
  return [each for each in shown if each is not None]


@pytest.mark.slow
def test_the_notebook_looks_into_a_run_on_regions(run, monkeypatch, capsys):
  monkeypatch.setenv("XMR_RUN", str(run[0]))
  monkeypatch.delenv("XMR_COMPARE", raising=False)
  figures = executed(pathlib.Path(__file__).parents[1] / "notebooks" / "inspect_checkpoint.ipynb")
  # Curves, matrix, histograms, map, retrieved, matches.
  assert len(figures) == 6
  assert capsys.readouterr().out.count(".jpg: a ") == 5
  shown = [axis.get_xlabel() for axis in figures[-1].axes]
  assert any(label.endswith(".jpg") for label in shown)
  assert any(label.startswith("a ") for label in shown)


def test_tokens_that_are_there_are_searched_as_they_are(folder, run):
  loaded = inspect.load(run[0])
  regions, mask = np.load(folder / "regions.npy"), np.load(folder / "mask.npy")
  gallery, _ = matches.tokens(loaded, (regions, mask))
  for task in ("t2i", None):
    found = loaded.search(["a red house"], gallery, k=3, task=task)
    for one, other in zip(found, loaded.search(["a red house"], (regions, mask), k=3), strict=True):
      np.testing.assert_array_equal(one, other)
  with loaded.config.unlocked():
    loaded.config.similarity = "MrSw"
  with pytest.raises(UserError, match="MrSw sums over the tokens of one side: say which task it"):
    loaded.search(["a red house"], gallery)


def test_a_caption_without_words_is_one_error(tmp_path):
  folder = write_folder(tmp_path)
  path = next(folder.glob("dataset_*.json"))
  content = json.loads(path.read_text())
  content["images"][5]["sentences"][1] |= {"raw": " ", "tokens": []}
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match=r"images\[5\] .* sentid 11 is empty; expected words in raw"):
    data.load(small(folder))


def test_unknown_words_match_as_one_word_that_is_there(folder, run):
  loaded = inspect.load(run[0])
  gallery = np.load(folder / "regions.npy")[:6].astype(np.float32)
  scores, rows = loaded.search(["zzz", "qqq", "dog"], gallery, 6)
  assert np.isfinite(scores).all() and np.ptp(scores[0]) > 0
  np.testing.assert_array_equal(scores[0], scores[1])
  np.testing.assert_array_equal(rows[0], rows[1])
  assert np.any(scores[0] != scores[2])
  with pytest.raises(UserError, match="no word of 'zzz' is in the vocabulary"):
    loaded.align(gallery[0], "zzz")
