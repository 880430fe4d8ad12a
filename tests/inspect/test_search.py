"""Searching a folder: once encoded, always current, exact, fast, and clear about mistakes."""

import shutil
import time

import numpy as np
import pytest

from xmr import search
from xmr.errors import UserError
from xmr.eval import top_k
from xmr.inspect import index as galleries
from xmr.inspect import report


def ask(*arguments):
  search.main(["search", *map(str, arguments)])


@pytest.fixture
def flags(trained, gallery, tmp_path):
  return [f"--workdir={trained}", f"--gallery={gallery}", f"--cache_dir={tmp_path / 'cache'}"]


def test_it_ranks_the_folder_as_the_model_does_and_lists_what_it_skipped(
  run, gallery, flags, capsys
):
  ask(*flags, "a red circle", "-k", 4)
  printed = capsys.readouterr()
  names = [f"{row:02}.png" for row in range(11)] + ["more/11.png"]
  scores, found = run.search("a red circle", [gallery / name for name in names], 4)
  lines = [line.split(maxsplit=2) for line in printed.out.splitlines()]
  assert [line[2] for line in lines] == [str(gallery / names[row]) for row in found[0]]
  np.testing.assert_allclose([float(line[1]) for line in lines], scores[0], atol=1e-4)
  assert "12 pictures (12 newly encoded)" in printed.err
  assert (
    "skipped 1 unreadable" in printed.err
    and "broken.jpg" in printed.err
    and "notes.txt" not in printed.err
  )


def test_a_picture_finds_itself_first(gallery, flags, capsys):
  ask(*flags, f"--image={gallery / '05.png'}", "-k", 1)
  line = capsys.readouterr().out.split()
  assert line[2] == str(gallery / "05.png") and float(line[1]) == pytest.approx(1, abs=1e-4)


def test_only_new_and_changed_pictures_are_encoded_again(run, gallery, tmp_path):
  folder = tmp_path / "pictures"
  shutil.copytree(gallery, folder)
  first = galleries.encode_folder(run, folder, cache_dir=tmp_path, progress=False)
  assert (
    first.encoded == 12
    and galleries.encode_folder(run, folder, cache_dir=tmp_path, progress=False).encoded == 0
  )
  shutil.copy(folder / "03.png", folder / "04.png")
  (folder / "00.png").unlink()
  again = galleries.encode_folder(run, folder, cache_dir=tmp_path, progress=False)
  assert again.encoded == 1 and again.names[0] == "01.png" and len(again.names) == 11
  # 03 comes from the cache. 04 is its copy now, and encoded alone: equal to the bit to itself
  # alone, to 03 but for rounding, as other numbers of pictures are other programs.
  np.testing.assert_array_equal(again.embeddings[2], first.embeddings[3])
  np.testing.assert_array_equal(again.embeddings[3], run.encode_image([folder / "03.png"])[0])
  assert (again.embeddings[3] != first.embeddings[4]).any()
  assert len(list(tmp_path.glob("galleries/*/*.npz"))) == 1


def test_pictures_that_are_taken_away_leave_the_rest_encoded(run, gallery, tmp_path):
  folder = tmp_path / "pictures"
  shutil.copytree(gallery, folder)
  galleries.encode_folder(run, folder, cache_dir=tmp_path, progress=False)
  for row in range(4):
    (folder / f"{row:02}.png").unlink()
    assert galleries.encode_folder(run, folder, cache_dir=tmp_path, progress=False).encoded == 0


def test_a_stopped_encoding_goes_on_where_it_was(run, gallery, tmp_path, monkeypatch):
  monkeypatch.setattr(galleries, "BLOCK", 5)
  encode, calls = type(run).encode_crops, []

  def stopping(self, crops):
    calls.append(len(crops))
    if len(calls) == 2:
      raise KeyboardInterrupt
    return encode(self, crops)

  monkeypatch.setattr(type(run), "encode_crops", stopping)
  with pytest.raises(KeyboardInterrupt):
    galleries.encode_folder(run, gallery, cache_dir=tmp_path, progress=False)
  done = galleries.encode_folder(run, gallery, cache_dir=tmp_path, progress=False)
  assert done.encoded == 12 - calls[0] and len(done.names) == 12


def test_a_damaged_cache_is_made_anew_and_another_model_has_its_own(
  run, earlier, gallery, tmp_path
):
  from xmr import inspect

  whole = galleries.encode_folder(run, gallery, cache_dir=tmp_path, progress=False)
  (path,) = tmp_path.glob("galleries/*/*.npz")
  path.write_bytes(path.read_bytes()[:300])
  assert galleries.encode_folder(run, gallery, cache_dir=tmp_path, progress=False).encoded == 12
  other = galleries.encode_folder(
    inspect.load(earlier), gallery, cache_dir=tmp_path, progress=False
  )
  assert other.encoded == 12 and np.abs(other.embeddings - whole.embeddings).max() > 1e-3
  kept = sorted(tmp_path.glob("galleries/*/*.npz"), key=lambda file: file.parent == path.parent)
  theirs, mine = kept
  shutil.copy(theirs, mine)
  again = galleries.encode_folder(run, gallery, cache_dir=tmp_path, progress=False)
  assert again.encoded == 12
  np.testing.assert_allclose(again.embeddings, whole.embeddings, atol=1e-6)


def test_the_page_shows_thumbnails_and_escapes_names(flags, gallery, tmp_path, capsys):
  shutil.copy(gallery / "00.png", gallery / "<script>alert(1).png")
  try:
    ask(*flags, "a red circle", "-k", 20, f"--html={tmp_path / 'page.html'}")
  finally:
    next(gallery.glob("<script>*")).unlink()
  html = (tmp_path / "page.html").read_text()
  assert (
    html.count("data:image/webp;base64,") == 13
    and "<script>" not in html
    and "&lt;script&gt;alert" in html
  )
  assert "1 unreadable pictures were skipped" in html


@pytest.mark.parametrize("kind", ["cosine", "dot", "order"])
@pytest.mark.parametrize("text_query", [False, True])
def test_the_index_answers_as_the_exact_ranking(kind, text_query):
  rng = np.random.default_rng(0)
  items = rng.normal(size=(300, 16)).astype(np.float32)
  items[100:140] = items[7]  # Equal scores: the lowest index first.
  query = items[7] + 0.01
  scores, found = galleries.Index(items, kind=kind).search(query, 12, text_query=text_query)
  expected = top_k(query[None], items, 12, kind=kind, text_query=text_query)
  np.testing.assert_array_equal(found, expected[1][0])
  np.testing.assert_allclose(scores, expected[0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_100_000_pictures_answer_in_50_milliseconds():
  items = np.random.default_rng(0).normal(size=(100_000, 256)).astype(np.float32)
  index = galleries.Index(items)
  index.search(items[0], 10)
  spent = []
  for row in range(50):
    begun = time.perf_counter()
    assert index.search(items[row], 10)[1][0] == row
    spent.append(time.perf_counter() - begun)
  # The best: other programs on the machine may slow the rest.
  assert min(spent) < 0.05, spent


def test_faiss_finds_the_same_where_it_is_installed():
  pytest.importorskip("faiss")
  items = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
  exact, graph = (
    galleries.Index(items, backend=backend).search(items[3], 5) for backend in ("exact", "faiss")
  )
  np.testing.assert_array_equal(exact[1], graph[1])
  np.testing.assert_allclose(exact[0], graph[0], atol=1e-5)


@pytest.mark.parametrize(
  "arguments, expected",
  [
    (["--gallery=x", "a"], "--workdir is missing"),
    (["--workdir=x", "a"], "--gallery is missing"),
    (["--workdir=nowhere", "--gallery=x", "a"], "nowhere is not the folder of a run"),
    (["--workdir=x", "--gallery=x"], "neither of a caption and --image"),
    (["--workdir=x", "--gallery=x", "a", "--image=b"], "both of a caption and --image"),
    (["--workdir=x", "--gallery=x", "  "], "the query is empty"),
    (["--workdir=x", "--gallery=x", "a", "-k", "0"], "-k is 0"),
    (["--workdir=x", "--galery=x", "a"], "unrecognized arguments: --galery=x"),
  ],
)
def test_a_mistake_ends_with_one_line(arguments, expected, capsys):
  with pytest.raises(SystemExit) as stopped:
    ask(*arguments)
  error = capsys.readouterr().err.strip()
  assert (
    stopped.value.code == 2
    and error.startswith("xmr: error: ")
    and expected in error
    and "\n" not in error
  )


def test_a_run_without_checkpoints_ends_every_command_with_one_line(tmp_path, capsys):
  (tmp_path / "config.json").write_text("{}")
  for command, arguments in ((search, [f"--gallery={tmp_path}", "a"]), (report, [])):
    with pytest.raises(SystemExit) as stopped:
      command.main(["command", f"--workdir={tmp_path}", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"xmr: error: {tmp_path} has no checkpoints yet\n"


def test_mistakes_that_need_the_run_end_with_one_line(flags, gallery, tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  (tmp_path / "bad").mkdir()
  (tmp_path / "bad" / "a.jpg").write_bytes(b"x")
  for arguments, expected in (
    ([*flags, "zebra unicorn"], "all words are unknown to the run (zebra, unicorn)"),
    ([*flags, f"--image={tmp_path / 'none.png'}"], "cannot read image"),
    ([*flags, f"--gallery={tmp_path / 'none'}", "a circle"], "is not a folder"),
    (
      [*flags, f"--gallery={tmp_path / 'empty'}", "a circle"],
      "has no pictures; expected files that end in .jpg",
    ),
    ([*flags, f"--gallery={tmp_path / 'bad'}", "a circle"], "none of the 1 pictures"),
    ([*flags, "--index=annoy", "a circle"], "--index is 'annoy'; expected exact or faiss"),
  ):
    with pytest.raises(SystemExit) as stopped:
      ask(*arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith("xmr: error: ") and expected in error
  ask(*flags, "a red zebra")
  assert "read as one unknown word: zebra" in capsys.readouterr().err


def test_help_imports_no_jax(command):
  code = (
    "import sys; from xmr import search; search.parser().format_help(); assert 'jax' not in "
    "sys.modules"
  )
  command("-c", code)


def test_order_embeddings_refuse_faiss():
  pytest.importorskip("faiss")
  with pytest.raises(UserError, match="knows no order embeddings"):
    galleries.Index(np.eye(3), kind="order", backend="faiss")
