"""The command that scores any embeddings: what it writes, its baselines, and how it refuses
mistakes.
"""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from xmr.errors import UserError
from xmr.eval import baselines, protocol
from xmr.eval.__main__ import main
from xmr.eval.relevance import rouge_l


def example(folder, images=30, width=8, seed=0):
  rng = np.random.default_rng(seed)
  owner = np.repeat(np.arange(images), np.resize([1, 3, 2], images))
  image = rng.normal(size=(images, width)).astype(np.float32)
  text = (image[owner] + rng.normal(size=(len(owner), width))).astype(np.float32)
  texts = [" ".join(rng.choice(["a", "dog", "runs", "on", "grass", "snow"], 5)) for _ in owner]
  for name, array in (("I", image), ("T", text), ("M", owner)):
    np.save(folder / f"{name}.npy", array)
  sentences = [
    [{"raw": texts[t], "sentid": int(t)} for t in np.flatnonzero(owner == j)] for j in range(images)
  ]
  karpathy = {
    "images": [{"split": "test", "imgid": j, "sentences": s} for j, s in enumerate(sentences)]
  }
  (folder / "captions.json").write_text(json.dumps(karpathy))
  return image, text, owner, texts


def run(folder, *flags, embeddings=("I", "T", "M")):
  given = [
    f"--{name}={folder / file}.npy"
    for name, file in zip(("image", "text", "image_of_text"), embeddings, strict=True)
  ]
  main(["xmr.eval", *given, f"--cache_dir={folder / 'cache'}", *flags])


def refused(capsys, folder, *flags, **keywords):
  with pytest.raises(SystemExit) as stop:
    run(folder, *flags, **keywords)
  error = capsys.readouterr().err
  assert stop.value.code == 2 and error.startswith("xmr: error: ") and error.count("\n") == 1, error
  return error


def test_results_hold_recall_and_graded_retrieval_by_every_relevance(tmp_path, capsys):
  image, text, owner, texts = example(tmp_path)
  matrix = rouge_l(texts, owner)
  np.save(tmp_path / "R.npy", matrix)
  matrix.tofile(tmp_path / "spice.npy")
  run(
    tmp_path,
    f"--captions={tmp_path}/captions.json",
    f"--relevance={tmp_path}/R.npy",
    f"--spice={tmp_path}/spice.npy",
    "--k=10",
    "--folds=3",
    f"--out={tmp_path}/out",
    "--dataset=toy",
  )
  found = json.loads((tmp_path / "out/results.json").read_text())
  metrics = found["metrics"]
  for name, value in protocol.score(image, text, owner, folds=3).items():
    assert name.endswith("/ties") or metrics[name] == value
  for task in ("i2t", "t2i", "i2i", "t2t"):
    assert (
      metrics[f"rouge_l/{task}/ndcg"]
      == metrics[f"relevance/{task}/ndcg"]
      == metrics[f"spice/{task}/ndcg"]
    )
    assert 0 < metrics[f"rouge_l/{task}/alpha_ndcg"] <= 1
    assert metrics[f"{task}/self_information"] > 0
  assert 0 <= metrics["order/pair"] <= 1
  assert (found["dataset"], found["n_images"], found["n_texts"]) == ("toy", 30, len(texts))
  shown = capsys.readouterr().out
  assert f"{metrics['rsum']:.1f}" in shown and "rouge_l/t2t/ndcg" in shown


def test_recall_alone_needs_nothing_but_embeddings(tmp_path, capsys):
  example(tmp_path)
  run(tmp_path)
  assert "rsum" in capsys.readouterr().out


def test_plain_list_of_captions_is_enough_for_rouge_l(tmp_path, capsys):
  *_, texts = example(tmp_path)
  with gzip.open(tmp_path / "list.json.gz", "wt") as file:
    json.dump(texts, file)
  run(tmp_path, f"--captions={tmp_path}/list.json.gz", "--k=5")
  assert "rouge_l/i2t/ndcg" in capsys.readouterr().out


def test_extra_positives_and_human_judgements_take_ids_from_the_captions(tmp_path, capsys):
  image, text, owner, _ = example(tmp_path)
  i2t = {str(j): np.flatnonzero(owner == j).tolist() for j in range(30)}
  t2i = {str(t): [int(j)] for t, j in enumerate(owner)}
  for name in ("eccv", "cxc"):
    (tmp_path / f"{name}_image_to_caption.json").write_text(json.dumps(i2t))
    (tmp_path / f"{name}_caption_to_image.json").write_text(json.dumps(t2i))
  rows = [f"COCO_val2014:sentid:{a},COCO_val2014:sentid:{a + 1},{a % 5},x" for a in range(40)]
  (tmp_path / "sts.csv").write_text(
    "\n".join(["caption1,caption2,agg_score,sampling_method", *rows]) + "\n"
  )
  flags = [f"--positives={tmp_path}", f"--sts={tmp_path}/sts.csv"]
  run(tmp_path, *flags, f"--captions={tmp_path}/captions.json", f"--out={tmp_path}/out", "--k=5")
  metrics = json.loads((tmp_path / "out/results.json").read_text())["metrics"]
  assert metrics["eccv/t2i/r1"] == metrics["cxc/t2i/r1"] == pytest.approx(metrics["t2i/r1"])
  assert metrics["eccv/i2t/r5"] == pytest.approx(metrics["i2t/r5"])
  assert "eccv/i2t/map_at_r" in metrics and "cxc/i2t/map_at_r" not in metrics
  assert -1 <= metrics["sts/spearman"] <= 1
  capsys.readouterr()
  assert "needs the ids" in refused(capsys, tmp_path, *flags)


def slow_cca(x, y, regularization):
  """The generalised eigenproblem, in another form than ours: C_xy C_yy^-1 C_yx w = c^2 C_xx w."""
  x, y = x - x.mean(0), y - y.mean(0)
  xx, yy, xy = x.T @ x / len(x), y.T @ y / len(y), x.T @ y / len(x)
  xx += regularization * np.trace(xx) / len(xx) * np.eye(len(xx))
  yy += regularization * np.trace(yy) / len(yy) * np.eye(len(yy))
  values = np.linalg.eigvals(np.linalg.solve(xx, xy @ np.linalg.solve(yy, xy.T)))
  return np.sqrt(np.maximum(np.sort(values.real)[::-1], 0))


def test_cca_finds_the_canonical_correlations():
  rng = np.random.default_rng(0)
  owner = rng.integers(40, size=90)
  image, text = rng.normal(size=(40, 5)), rng.normal(size=(90, 4))
  text[:, :2] += image[owner][:, 1:3]
  (x_mean, x_side), (y_mean, y_side) = baselines.fit_cca(image, text, owner, regularization=0.1)
  x, y = (image[owner] - x_mean) @ x_side, (text - y_mean) @ y_side
  expected = slow_cca(image[owner], text, 0.1)[:4]
  np.testing.assert_allclose(x.T @ y / len(y), np.diag(expected), atol=1e-10)
  (_, weighted), _ = baselines.fit_cca(image, text, owner, regularization=0.1, power=2)
  np.testing.assert_allclose(weighted, x_side * expected**2, atol=1e-10)


def test_baselines_come_from_the_same_command(tmp_path):
  example(tmp_path)
  train = tmp_path / "train"
  train.mkdir()
  example(train, images=90, seed=1)
  flags = [
    f"--train_{name}={train / file}.npy"
    for name, file in (("image", "I"), ("text", "T"), ("image_of_text", "M"))
  ]
  run(tmp_path, "--baseline=raw,cca", *flags, f"--out={tmp_path}/out", "--cca_dim=4")
  raw, cca = (
    json.loads((tmp_path / f"out/{name}/results.json").read_text()) for name in ("raw", "cca")
  )
  assert raw["metrics"]["rsum"] != cca["metrics"]["rsum"]
  run(tmp_path, f"--out={tmp_path}/plain")
  assert json.loads((tmp_path / "plain/results.json").read_text())["metrics"] == raw["metrics"]


def test_cca_on_flickr8k_gives_the_known_floor(shared, tmp_path):
  folder = shared / "data/flickr8k/features"
  for name, file, cut in (
    ("image", "image_mobilenetv2", (6000, 7000)),
    ("text", "text_minilm", (30000, 35000)),
  ):
    features = np.load(folder / f"{file}.npy", mmap_mode="r")
    np.save(tmp_path / f"train_{name}.npy", features[: cut[0]])
    np.save(tmp_path / f"{name}.npy", features[cut[1] :])
  np.save(tmp_path / "train_owner.npy", np.arange(30000) // 5)
  np.save(tmp_path / "owner.npy", np.arange(5000) // 5)
  run(
    tmp_path,
    "--baseline=cca",
    f"--train_image={tmp_path}/train_image.npy",
    f"--train_text={tmp_path}/train_text.npy",
    f"--train_image_of_text={tmp_path}/train_owner.npy",
    f"--out={tmp_path}",
    embeddings=("image", "text", "owner"),
  )
  assert json.loads((tmp_path / "results.json").read_text())["metrics"]["rsum"] == pytest.approx(
    245.5, abs=2
  )


# ml_collections loads config files in a way that warns.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_mistakes_are_one_clear_line_before_anything_is_written(tmp_path, capsys):
  image, text, owner, texts = example(tmp_path)
  good = np.full((len(text), 30), 0.5, np.float32)
  out = f"--out={tmp_path}/out"
  arrays = {
    "shape": (good[:-1], "expected"),
    "nan": (np.where(np.arange(good.size).reshape(good.shape) == 5, np.nan, good), "nan"),
    "high": (good + 1, r"[0, 1]"),
  }
  for name, (array, message) in arrays.items():
    np.save(tmp_path / f"{name}.npy", array)
    assert message in refused(capsys, tmp_path, f"--relevance={tmp_path / name}.npy", out)
  np.save(tmp_path / "good.npy", good)
  good[:-1].tofile(tmp_path / "spice.npy")
  (tmp_path / "few.json").write_text(json.dumps(texts[:-1]))
  (tmp_path / "other.json").write_text(json.dumps({"annotations": []}))
  np.save(tmp_path / "words.npy", np.array(["a"]))
  np.savez(tmp_path / "many.npz", image)
  for flags, message in (
    ([f"--relevance={tmp_path}/good.npy", "--k=31"], "k is 31 but the gallery has 30 images"),
    ([f"--spice={tmp_path}/spice.npy"], "another split"),
    ([f"--captions={tmp_path}/few.json"], f"{len(texts) - 1} captions"),
    ([f"--captions={tmp_path}/other.json"], "Karpathy"),
    ([f"--captions={tmp_path}/captions.json", "--split=val"], "no images of split 'val'"),
    (["--baseline=pca"], "raw or cca"),
    (["--baseline=cca"], "--train_image"),
    (["--folds=7"], "folds is 7"),
    (["--kind=euclid"], "euclid"),
    (["--form=clarke", f"--relevance={tmp_path}/good.npy"], "released, standard"),
    (["--relevnace=x.npy"], "relevnace"),
    (["left.npy"], "left.npy"),
    (["--config=absent.py", "--baseline=cca"], "absent.py"),
  ):
    assert message in refused(capsys, tmp_path, *flags, out), flags
  for embeddings, message in (
    (("I", "absent", "M"), "no file"),
    (("I", "words", "M"), "expected numbers with 2 dimensions"),
    (("I", "T", "T"), "expected integers"),
    (("T", "T", "M"), "has no text"),
  ):
    assert message in refused(capsys, tmp_path, out, embeddings=embeddings)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--folds=0", "--folds is 0; expected from 1"),
    ("--folds=-5", "--folds is -5; expected from 1"),
    ("--folds=1e300", "folds"),
    ("--k=0", "--k is 0; expected from 1"),
    (f"--k={10**30}", "--k is"),
    ("--alpha=1.01", "--alpha is 1.01; expected from 0 to 1"),
    ("--alpha=nan", "--alpha is nan; expected a finite number"),
    ("--novelty=last", "--novelty is 'last'; expected one of corrected, first"),
    ("--diversity=twice", "--diversity is 'twice'; expected one of once, released"),
    ("--category_at=-1", "--category_at is -1; expected from 0"),
    ("--cca_dim=-1", "--cca_dim is -1; expected from 0"),
    ("--cca_regularization=0", "--cca_regularization is 0.0; expected more than 0"),
    ("--cca_regularization=inf", "--cca_regularization is inf; expected a finite number"),
    ("--cca_power=1e300", "--cca_power is 1e+300; expected from -100"),
    ("--category", "--category needs the category of each image: expected --captions"),
    ("--graded", "--graded needs the captions as written: expected --captions=FILE"),
  ],
)
def test_a_flag_out_of_range_is_one_line(flag, message, tmp_path, capsys):
  example(tmp_path)
  assert message in refused(capsys, tmp_path, flag)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_scored(
  tmp_path, capsys, monkeypatch
):
  example(tmp_path)
  (tmp_path / "file").write_text("")
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  for name in ("file", "file/below", "loop"):
    error = refused(capsys, tmp_path, f"--out={tmp_path}/{name}")
    assert "--out" in error and "is no folder" in error
  (tmp_path / "out/results.json").mkdir(parents=True)
  assert "--out: cannot write" in refused(capsys, tmp_path, f"--out={tmp_path}/out")
  monkeypatch.setattr("os.access", lambda *_: False)
  assert "--out: cannot write into" in refused(capsys, tmp_path, f"--out={tmp_path}/new")


def test_json_and_arrays_of_any_kind_are_one_line(tmp_path, capsys):
  _, text, _, texts = example(tmp_path)
  known = json.loads((tmp_path / "captions.json").read_text())

  def changed(**of_sentence):
    content = json.loads(json.dumps(known))
    content["images"][3]["sentences"][0] |= of_sentence
    return json.dumps(content).encode()

  cases = {
    "deep": b"[" * 200_000,
    "latin": '["\u00e4"]'.encode("latin-1"),
    "null": b"null",
    "half": b'{"images": [',
    "numbers": json.dumps(list(range(len(texts)))).encode(),
    "number": changed(raw=7),
    "id": changed(sentid="seven"),
    "huge": changed(sentid=2**70),
    "many": b"[" + b"1" * 5000 + b"]",
    "zipped.json.gz": b"no gzip",
  }
  for name, content in cases.items():
    path = tmp_path / (name if "." in name else f"{name}.json")
    path.write_bytes(content)
    assert path.name in refused(capsys, tmp_path, f"--captions={path}"), name
  (tmp_path / "folder.json").mkdir()
  assert "no captions file" in refused(capsys, tmp_path, f"--captions={tmp_path / 'folder.json'}")
  header = (tmp_path / "T.npy").read_bytes()
  shape = f"({len(text)}, 8)".encode()
  assert shape in header
  for number, wrong in enumerate((b"(-1, 8)", b"(9999999999999, 8)", b"((((((", b"(nan, 8)")):
    name = f"wrong{number}"
    (tmp_path / f"{name}.npy").write_bytes(
      header.replace(shape, wrong).replace(b" " * (len(wrong) - len(shape)) + b"\n", b"\n", 1)
    )
    assert "wrong" in refused(capsys, tmp_path, embeddings=("I", name, "M"))


def test_captions_in_another_order_than_the_embeddings_are_refused(tmp_path, capsys):
  image, text, owner, texts = example(tmp_path)
  order = np.random.default_rng(1).permutation(len(text))
  np.save(tmp_path / "T2.npy", text[order])
  np.save(tmp_path / "M2.npy", owner[order])
  captions = f"--captions={tmp_path}/captions.json"
  error = refused(capsys, tmp_path, captions, embeddings=("I", "T2", "M2"))
  first = np.flatnonzero(owner[order] != owner)[0]
  assert f"image_of_text[{first}] is {owner[order][first]}, but caption {first} of" in error
  assert f"describes image {owner[first]}" in error
  # The same embeddings with their own captions in their own order are fine.
  (tmp_path / "own.json").write_text(json.dumps([texts[t] for t in order]))
  run(tmp_path, f"--captions={tmp_path}/own.json", "--k=5", embeddings=("I", "T2", "M2"))


def test_switches_are_on_with_captions_and_go_off_one_by_one(tmp_path, capsys):
  *_, owner, _ = example(tmp_path)
  captions = [f"--captions={tmp_path}/captions.json", "--k=5"]
  run(tmp_path, *captions, "--noconsistency")
  shown = capsys.readouterr().out
  assert "rouge_l/i2t/ndcg" in shown and "order/pair" not in shown
  run(tmp_path, *captions, "--nograded")
  shown = capsys.readouterr().out
  assert "rouge_l/i2t/ndcg" not in shown and "order/pair" in shown
  run(tmp_path, "--consistency")
  assert "order/pair" in capsys.readouterr().out
  run(tmp_path, *captions, "--kind=dot")
  shown = capsys.readouterr().out
  assert "rouge_l/i2t/ndcg" in shown and "order/pair" not in shown
  np.save(tmp_path / "label.npy", np.arange(30) % 4)
  run(tmp_path, f"--label={tmp_path}/label.npy", "--category")
  assert "i2t/map" in capsys.readouterr().out
  np.save(tmp_path / "few.npy", np.arange(29) % 4)
  assert "29 categories; expected 30" in refused(
    capsys, tmp_path, f"--label={tmp_path}/few.npy", "--category"
  )


def test_missing_embeddings_are_named(capsys):
  with pytest.raises(SystemExit):
    main(["xmr.eval", "--text=T.npy"])
  assert "--image, --image_of_text missing" in capsys.readouterr().err


def test_raw_features_of_two_widths_are_refused():
  with pytest.raises(UserError, match="one space"):
    baselines.check_raw(np.ones((2, 3)), np.ones((2, 4)))


def test_help_lists_every_flag_without_jax():
  code = (
    "import sys; from xmr.eval.__main__ import main; main(['xmr.eval', '--help']); "
    "assert 'jax' not in sys.modules and 'scipy' not in sys.modules"
  )
  shown = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  ).stdout
  for name in ("image_of_text", "relevance", "spice", "baseline", "train_text", "positives", "sts"):
    assert f"--{name}" in shown
  assert "of similarity" not in shown and "one of cosine, dot, order" in shown
