"""Your own data in every format: the same ten images, captions and splits, however they are
written.
"""

import csv
import io
import json
import tarfile

import numpy as np
import pytest

from xmr.data import load
from xmr.data.own import rows, tables
from xmr.errors import UserError

N = 10
NAMES = [f"picture {i}.jpg" if i == 3 else f"p{i}.jpg" for i in range(N)]
CAPTIONS = [[f'A "big" dog, number {i}', f"A cat; | {i}"][: 1 + i % 2] for i in range(N)]
SPLITS = ["train"] * 7 + ["val", "test", "test"]
PAIRS = [(i, caption) for i in range(N) for caption in CAPTIONS[i]]


@pytest.fixture
def own(tmp_path, picture, data_config):
  """An empty folder with ten images in images/; own() loads it, own.write(name, text) adds a
  file.
  """

  class Own:
    path = tmp_path / "own"

    def images(self, below="images", split=None):
      for i, name in enumerate(NAMES):
        if split in (None, SPLITS[i]):
          self.write(f"{below}/{name}".lstrip("/"), picture(i))

    def write(self, name, content):
      path = self.path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def __call__(self, **fields):
      fields = {"name": "own", "dir": str(self.path)} | fields
      return load(data_config(**fields))

  return Own()


def text_of_csv(lines, delimiter=","):
  file = io.StringIO()
  csv.writer(file, delimiter=delimiter).writerows(lines)
  return file.getvalue()


def found(splits):
  """Returns {file name: (split, captions)} of loaded splits."""
  return {
    name.rpartition("/")[2]: (
      split.name,
      [t for t, i in zip(split.texts, split.image_of_text, strict=True) if i == row],
    )
    for split in splits.values()
    for row, name in enumerate(split.image_names)
  }


EXPECTED = {name: (SPLITS[i], CAPTIONS[i]) for i, name in enumerate(NAMES)}


def karpathy(own):
  own.images()
  images, sentid = [], 0
  for i in range(N):
    sentences = [{"raw": c, "sentid": sentid + k, "imgid": i} for k, c in enumerate(CAPTIONS[i])]
    sentid += len(sentences)
    images.append({"filename": NAMES[i], "imgid": i, "split": SPLITS[i], "sentences": sentences})
  own.write("dataset_mine.json", json.dumps({"images": images}))


def coco(own):
  for split in ("train", "val", "test"):
    mine = [i for i in range(N) if SPLITS[i] == split]
    content = {
      "images": [{"id": 7 * i, "file_name": NAMES[i]} for i in mine],
      "annotations": [
        {"id": 100 + k, "image_id": 7 * i, "caption": c}
        for k, (i, c) in enumerate(PAIRS)
        if i in mine
      ],
    }
    own.write(f"annotations/captions_{split}2017.json", json.dumps(content))
    own.write(f"annotations/instances_{split}2017.json", "{}")
    own.images(f"{split}2017", split)


def tokens(own):
  own.images("Flicker8k_Dataset")
  lines = [f"{NAMES[i]}#{k}\t{c}" for i in range(N) for k, c in enumerate(CAPTIONS[i])]
  own.write("Flickr8k_text/Flickr8k.token.txt", "\n".join(lines) + "\n")
  own.write("Flickr8k_text/Flickr8k.lemma.token.txt", "\n".join(lines) + "\n")
  own.write("Flickr8k_text/readme.txt", "If you use this, cite us\n")
  for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
    listed = [NAMES[i] for i in range(N) if SPLITS[i] == split]
    own.write(f"Flickr8k_text/Flickr_8k.{name}Images.txt", "\r\n".join(listed) + "\r\n")


def flickr30k_token(own):
  tokens(own)
  folder = own.path / "Flickr8k_text"
  (folder / "Flickr8k.lemma.token.txt").unlink()
  (folder / "Flickr8k.token.txt").rename(folder / "results_20130124.token")


def comma(own):
  own.images("Images")
  lines = [["image", "caption", "split"], *([NAMES[i], c, SPLITS[i]] for i, c in PAIRS)]
  own.write("captions.txt", text_of_csv(lines))


def pipe(own):
  own.images("flickr30k_images")
  lines = ["image_name| comment_number| comment"]
  lines += [
    f"{NAMES[i]}| {k}| {c.replace('|', '/')}" for i in range(N) for k, c in enumerate(CAPTIONS[i])
  ]
  own.write("results.csv", "\n".join(lines))
  for split in ("train", "val", "test"):
    own.write(
      f"{split}.txt",
      "\n".join(n.removesuffix(".jpg") for n, s in zip(NAMES, SPLITS, strict=True) if s == split),
    )


def metadata_jsonl(own):
  for split in ("train", "val", "test"):
    own.images(split, split)
    records = [
      json.dumps({"file_name": NAMES[i], "text": CAPTIONS[i]})
      for i in range(N)
      if SPLITS[i] == split
    ]
    own.write(f"{split}/metadata.jsonl", "\n".join(records) + "\n\n")


def metadata_csv(own):
  own.images("")
  lines = [["file_name", "caption_1", "caption_2", "split"]]
  lines += [
    [NAMES[i], CAPTIONS[i][0], CAPTIONS[i][1] if i % 2 else "", SPLITS[i]] for i in range(N)
  ]
  own.write("metadata.csv", b"\xef\xbb\xbf" + text_of_csv(lines).encode())


def tsv(own):
  own.images("a/b")
  lines = ["filepath\tsentence\tsplit"]
  lines += [f"/home/me/data/a/b/{NAMES[i]}\t{c}\t{SPLITS[i].upper()}" for i, c in PAIRS]
  own.write("captions.tsv", "\r\n".join(lines))


def semicolon_in_utf16(own):
  own.images()
  lines = [["Photo", "Text", "Set"], *([f"images\\{NAMES[i]}", c, SPLITS[i]] for i, c in PAIRS)]
  own.write("captions.csv", text_of_csv(lines, ";").encode("utf-16"))


def jsonl(own):
  own.images()
  records = [
    {"image": f"./{NAMES[i]}", "captions": CAPTIONS[i], "split": SPLITS[i], "width": 3}
    for i in range(N)
  ]
  own.write("captions.jsonl", "\n".join(map(json.dumps, records)))


def json_of_each_split(own):
  own.images()
  for split in ("train", "val", "test"):
    mine = [i for i in range(N) if SPLITS[i] == split]
    records = [{"image": NAMES[i], "caption": CAPTIONS[i]} for i in mine]
    own.write(f"{split}.json", json.dumps(records))


def list_in_a_cell(own):
  own.images()
  lines = [["filename", "raw", "split"]]
  lines += [[NAMES[i], json.dumps(CAPTIONS[i]), SPLITS[i]] for i in range(N)]
  own.write("flickr_annotations.csv", text_of_csv(lines))


def parquet(own):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  own.images()
  table = pyarrow.table({"image": NAMES, "captions": CAPTIONS, "split": SPLITS})
  own.path.mkdir(exist_ok=True)
  parquet.write_table(table, own.path / "captions.parquet")


def shards(own):
  own.images("tmp")
  for split in ("train", "val", "test"):
    with tarfile.open(own.path / f"{split}-000.tar", "w") as tar:
      for i in range(N):
        if SPLITS[i] != split:
          continue
        stem, _ = NAMES[i].rsplit(".", 1)
        image = (own.path / "tmp" / NAMES[i]).read_bytes()
        text = "\n".join(CAPTIONS[i]).encode()
        record = json.dumps({"caption": CAPTIONS[i]}).encode()
        caption = (".txt", text) if i % 2 else (".json", record)
        for ending, content in ((".JPG" if i == 4 else ".jpg", image), caption):
          member = tarfile.TarInfo(f"./{stem}{ending}")
          member.size = len(content)
          tar.addfile(member, io.BytesIO(content))
  for name in NAMES:
    (own.path / "tmp" / name).unlink()


FORMATS = (
  karpathy, coco, tokens, flickr30k_token, comma, pipe, metadata_jsonl, metadata_csv, tsv,
  semicolon_in_utf16, jsonl, json_of_each_split, list_in_a_cell, parquet, shards,
)  # fmt: skip


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_every_format_gives_the_same_images_captions_and_splits(own, make, picture):
  make(own)
  columns = "image=photo,caption=text,split=set" if make is semicolon_in_utf16 else ""
  splits = own(columns=columns)
  expected = EXPECTED
  if make is pipe:
    expected = {k: (s, [c.replace("|", "/") for c in t]) for k, (s, t) in EXPECTED.items()}
  assert {k.replace(".JPG", ".jpg"): v for k, v in found(splits).items()} == expected
  assert splits.lines[0].endswith(f"{N} images, {len(PAIRS)} captions, 3 of 3 splits given")
  for split in splits.values():
    for row, name in enumerate(split.image_names):
      name = name.rpartition("/")[2].replace(".JPG", ".jpg")
      assert split.pixels[row] == picture(NAMES.index(name))


def write_csv(own, *lines, name="captions.csv"):
  own.images()
  own.write(name, "\n".join(lines) + "\n")


def test_a_caption_with_unquoted_commas_or_quotes_is_read_to_its_end(own):
  lines = [f"{name},a dog, a cat" for name in NAMES[1:]]
  write_csv(own, "image,caption", f'{NAMES[0]},"Hi" he said', *lines)
  texts = {name: captions for name, (_, captions) in found(own()).items()}
  assert texts[NAMES[0]] == ['"Hi" he said']
  assert texts[NAMES[1]] == ["a dog, a cat"]


def test_the_line_of_flickr30k_that_lost_its_bar_is_read(own):
  rows = [f"{name}| 0| a dog" for name in NAMES]
  write_csv(own, "image_name| comment_number| comment", *rows, f"{NAMES[2]}| 4   A cat .")
  assert found(own())[NAMES[2]][1] == ["a dog", "A cat ."]


def test_a_table_without_a_header_and_another_name_is_found(own):
  write_csv(own, *(f"{name},a dog {i}" for i, name in enumerate(NAMES)), name="mine.csv")
  own.write("README.md", "x")
  own.write("notes.txt", "not a table\n")
  assert len(found(own())) == N


def test_names_are_found_in_any_case_and_without_ending(own):
  own.images("deep/er")
  lines = [f"{name.upper() if i % 2 else name[:-4]},dog {i}" for i, name in enumerate(NAMES)]
  own.write("captions.csv", "image,caption\n" + "\n".join(lines))
  assert set(found(own())) == set(NAMES)


def test_missing_images_are_counted_and_named(own):
  write_csv(
    own, "image,caption", *(f"{n},dog" for n in ("x.jpg", *NAMES, "y.jpg", "z.jpg", "u.jpg"))
  )
  splits = own()
  assert len(found(splits)) == N
  assert any("missing: 4 " in line and "x.jpg, y.jpg, z.jpg, ..." in line for line in splits.lines)
  # The numbers of images are those of the table: rows of a feature file.
  assert min(min(s.image_id) for s in splits.values()) == 1 and splits.n_images == N + 4


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    (["image,caption", "p0.jpg,"], "captions.csv, line 2: 'p0.jpg' has no caption"),
    (["image,caption", "p0.jpg,x", "p1.jpg,a\0b"], "captions.csv, line 3 holds a NUL byte"),
    (["image,caption", ",a dog"], "captions.csv, line 2: the name of the image is ''"),
    (["image,caption", "", "p0.jpg"], "captions.csv, line 3: 1 fields; expected 2: image, caption"),
    (["photo,words", "p0.jpg,x"], "line 1: columns 'photo', 'words'; expected one of file names"),
    (["image,caption,split", "p0.jpg,x,dv"], "line 2: split is 'dv'; expected train, val or test"),
    (["image,caption,split", "p0.jpg,x,"], "line 2: split is empty"),
    (
      ["image,caption,split", "p0.jpg,x,val", "p0.jpg,y,test"],
      "line 3: image p0.jpg is in split test; captions.csv, line 2 says val",
    ),
    (["image,caption", "../../etc/x.jpg,dog"], "line 2: image .* stays in"),
    (["image,caption", "p0.jpg,\"['a dog' 'a cat']\""], "line 2: a list of captions has no commas"),
    (["image,caption", "q.jpg,dog"], "none of the 1 images that captions.csv names"),
    (["image,caption"], "captions.csv holds no captions"),
    (["image,caption", "p0.jpg,dog", "p1.jpg,cat"], "2 different images are too few"),
    (["image,caption,split", "p0.jpg,x,val"], "no image is of split train"),
    ([], "captions.csv is empty, or no text"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(own, lines, message):
  write_csv(own, *lines)
  with pytest.raises(UserError, match=message):
    own()


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("captions.csv", b"image,caption\np0.jpg,caf\xe9\n", "line 2: .* is not UTF-8"),
    ("captions.jsonl", b'{"image": "p0.jpg", "caption": "x"}\n{"image": ', "line 2 is not JSON"),
    ("captions.jsonl", b'{"image": "p0.jpg", "caption": 5}', "line 1: a caption is 5"),
    ("captions.jsonl", b'{"image": "p0.jpg", "caption": "\\ud83d"}', "half of a surrogate pair"),
    ("captions.jsonl", b'["p0.jpg", "dog"]', 'line 1: .*; expected {"file_name"'),
    ("captions.parquet", b"PAR1", "captions.parquet is no parquet table"),
    ("captions_train.json", b'{"images": [], "annotations": []}', "images is no list, or empty"),
    (
      "captions_train.json",
      b'{"images": [{"id": 1, "file_name": "p0.jpg"}],'
      b' "annotations": [{"image_id": 2, "caption": "x"}]}',
      r"annotations\[0\]: image_id 2 is the id of no image",
    ),
    ("a.tar", b"no tar", "a.tar is no whole tar file"),
    ("a.tar.gz", b"x", "a.tar.gz is compressed"),
    ("notes.md", b"x", "holds no captions that are known .notes.md"),
  ],
)  # fmt: skip
def test_a_file_that_is_not_as_expected_is_named(own, name, content, message):
  own.images()
  own.write(name, content)
  with pytest.raises(UserError, match=message):
    own()


def test_two_formats_are_refused_and_one_can_be_named(own):
  comma(own)
  own.write("metadata.csv", (own.path / "captions.txt").read_bytes())
  with pytest.raises(UserError, match="holds captions in 2 formats .*config.data.captions=FILE"):
    own()
  assert len(found(own(captions="metadata.csv"))) == N
  assert len(found(own(dir=str(own.path / "captions.txt")))) == N


def test_two_images_of_one_name_are_refused(own):
  own.images("a")
  own.images("b")
  own.write("captions.csv", f"image,caption\n{NAMES[0]},dog\n")
  with pytest.raises(UserError, match="line 2: image p0.jpg may be a/p0.jpg or b/p0.jpg"):
    own()


def test_parquet_without_pyarrow_names_the_extra(own, monkeypatch):
  own.write("captions.parquet", b"PAR1")
  monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
  with pytest.raises(UserError, match=r"needs pyarrow; pip install -e '.\[parquet\]'"):
    own()


def test_features_need_no_images(own, tmp_path):
  own.write("captions.csv", "image,caption\n" + "\n".join(f"{n},dog {n}" for n in NAMES))
  np.save(own.path / "image.npy", np.arange(N * 5, dtype=np.float32).reshape(N, 5))
  splits = own(image="features")
  for split in splits.values():
    for row, name in enumerate(split.image_names):
      assert split.image_features[row][0] == 5 * NAMES.index(name)


@pytest.mark.parametrize(
  ("name", "split"),
  [
    ("Flickr_8k.devImages.txt", "val"),
    ("captions_train2017.json", "train"),
    ("cc-validation-0001.tar", "val"),
    ("train_val.txt", None),
    ("contest.csv", None),
    ("trainer.csv", None),
    ("test", "test"),
  ],
)
def test_a_name_speaks_of_a_split(name, split):
  assert rows.split_in_name(name) == split


def test_columns_are_mapped_by_role():
  mapped = tables.mapping("image=photo, caption=first|second")
  assert tables.roles(["Second", "photo", "first", "text"], mapped) == (1, [0, 2], None)
  assert tables.roles(["photo", "first"], mapped) is None
  with pytest.raises(UserError, match="config.data.columns is 'photo'"):
    tables.mapping("photo")


def test_what_a_run_and_a_cache_leave_in_the_folder_is_no_source(own):
  comma(own)
  for name in ("checkpoints/1/x", "results.json", "data.json", "metrics.jsonl", "vocabulary.json"):
    own.write(f"runs/own/{name}", "{}")
  own.write("cache/own-1/dataset_info.json", "{}")
  own.write("cache/own-1/own-train.array_record-00000-of-00001", "")
  own.write("dataset_infos.json", "{}")
  assert found(own()) == EXPECTED


def test_what_img2dataset_writes_beside_its_shards_is_no_source(own):
  shards(own)
  own.write("train-000_stats.json", '{"count": 7, "status_dict": {"success": 7}}')
  assert len(found(own())) == N


def test_one_set_of_a_split_that_is_not_train_is_taken_as_a_whole(own):
  own.images("val2017")
  content = {
    "images": [{"id": i, "file_name": NAMES[i]} for i in range(N)],
    "annotations": [{"image_id": i, "caption": c} for i, c in PAIRS],
  }
  own.write("annotations/captions_val2017.json", json.dumps(content))
  splits = own()
  assert splits.lines[1].endswith("speaks of val, and no other split is there: taken as one set")
  assert len(found(splits)) == N and len(splits["train"].texts) > len(splits["val"].texts)


def test_some_rows_without_a_split_are_refused(own):
  own.images()
  own.write(
    "captions.jsonl",
    '{"image": "p0.jpg", "text": "dog", "split": "train"}\n{"image": "p1.jpg", "text": "cat"}',
  )
  with pytest.raises(UserError, match="line 2: image images/p1.jpg has no split, others have one"):
    own()


def test_accents_as_one_letter_or_two_and_names_without_ending(own, picture):
  own.write("cafe\u0301.jpg", picture(1))
  own.write("4b825dc", picture(2))
  own.write("a.b.jpeg", picture(3))
  own.write("captions.csv", "image,caption\ncaf\u00e9.jpg,dog\n4b825dc,cat\na.b.jpg,sea\n")
  assert set(found(own())) == {"cafe\u0301.jpg", "4b825dc", "a.b.jpeg"}


def test_a_source_beside_the_images_may_point_up(own):
  own.images()
  lines = "\n".join(f"../images/{name},dog {name}" for name in NAMES)
  own.write("annotations/captions.csv", "image,caption\n" + lines)
  assert len(found(own())) == N


def test_a_link_below_the_folder_that_leads_out_is_refused(own, tmp_path, picture):
  own.images()
  (tmp_path / "secret").mkdir()
  (tmp_path / "secret/p0.jpg").write_bytes(picture(77))
  (own.path / "images/out").symlink_to(tmp_path / "secret")
  own.write("captions.csv", "image,caption\nimages/out/p0.jpg,dog\np1.jpg,cat\np2.jpg,sea\n")
  with pytest.raises(UserError, match="is a link to .*secret"):
    own()
  (own.path / "images/out").unlink()
  (own.path / "images/p0.jpg").unlink()
  (own.path / "images/p0.jpg").symlink_to(tmp_path / "secret/p0.jpg")
  with pytest.raises(UserError, match="image images/p0.jpg in .* is a link to .*secret"):
    own()


def test_links_to_nothing_are_missing_images(own):
  own.images()
  (own.path / "loop").symlink_to("loop")
  (own.path / "images/x.jpg").symlink_to("nowhere")
  (own.path / "images/y.jpg").symlink_to("y.jpg")
  names = [*NAMES, "x.jpg", "y.jpg"]
  own.write("captions.csv", "image,caption\n" + "\n".join(f"{n},dog {n}" for n in names))
  assert any("missing: 2 of the images" in line for line in own().lines)


def test_the_images_folder_may_be_a_link_out(own, tmp_path):
  comma(own)
  (own.path / "Images").rename(tmp_path / "elsewhere")
  (own.path / "Images").symlink_to(tmp_path / "elsewhere")
  assert found(own()) == EXPECTED


def test_an_endless_caption_is_cut_and_said(own):
  own.images()
  lines = [f"{name},{'word ' * (900 if i == 3 else 4)}" for i, name in enumerate(NAMES)]
  own.write("captions.csv", "image,caption\n" + "\n".join(lines))
  splits = own(max_length=12)
  assert max(part.max_length() for part in splits.values()) == 12
  assert "long: 1 captions are cut to 10 words (config.data.max_length=12)" in splits.lines


def test_a_shard_whose_names_hold_periods(own, picture):
  own.path.mkdir()
  with tarfile.open(own.path / "a.tar", "w") as tar:
    for i in range(4):
      for ending, content in ((".jpg", picture(i)), (".txt", f"dog {i}".encode())):
        member = tarfile.TarInfo(f"photo.v{i}{ending}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
  assert set(found(own())) == {f"photo.v{i}.jpg" for i in range(4)}


@pytest.mark.parametrize(
  ("members", "message"),
  [
    (["a.jpg"], "a.tar, a: no caption; expected a.txt, or a.json"),
    (["a.txt"], "a.tar, a: no image"),
    (["a.jpg", "a.txt", "a.jpg"], "a.jpg is there twice"),
    (["a.cls"], "a.tar holds no images with captions"),
  ],
)
def test_a_shard_with_half_a_sample_is_refused(own, members, message, picture):
  own.path.mkdir()
  with tarfile.open(own.path / "a.tar", "w") as tar:
    for name in members:
      content = picture(0) if name.endswith("jpg") else b"a dog"
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  with pytest.raises(UserError, match=message):
    own()


def test_a_cut_shard_is_named(own):
  shards(own)
  path = own.path / "train-000.tar"
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
  with pytest.raises(UserError, match="train-000.tar"):
    own()


PIECES = (
  b'"', b",", b"\t", b"|", b"\n", b"\0", b"\\ud83d", b"\xff", b"[", b"]", b"{", b"null", b"1e999",
  b"../", b"\\", b"'", b'""', b"#1",
)  # fmt: skip


def mutated(content, rng):
  """Returns bytes with one to three changes: a byte, a cut, a repetition, a piece of syntax."""
  content = bytearray(content)
  for _ in range(rng.integers(1, 4)):
    i = int(rng.integers(max(1, len(content))))
    j = i + int(rng.integers(1, 40))
    match rng.integers(5):
      case 0:
        content[i : i + 1] = bytes([rng.integers(256)])
      case 1:
        del content[i:j]
      case 2:
        content[i:i] = content[j : j + 40]
      case 3:
        content[i:i] = PIECES[rng.integers(len(PIECES))]
      case 4:
        del content[i:]
  return bytes(content)


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_a_mutated_source_is_read_or_refused_in_one_line(own, make):
  make(own)
  sources = sorted(p for p in own.path.rglob("*") if p.is_file() and p.suffix != ".jpg")
  for seed in range(8):
    rng = np.random.default_rng(seed)
    path = sources[rng.integers(len(sources))]
    content = path.read_bytes()
    path.write_bytes(mutated(content, rng))
    try:
      splits = own()
      assert all(len(split.texts) == len(split.image_of_text) for split in splits.values())
    except UserError as error:
      assert "\n" not in str(error)
    path.write_bytes(content)


def test_a_header_whose_quote_is_not_closed_is_named(own):
  own.images()
  own.write("captions.csv", f'image,"caption\n{NAMES[0]},a dog"\n')
  with pytest.raises(UserError, match="captions.csv, line 1: columns 'image', 'caption"):
    own()


def test_a_file_of_the_right_name_in_the_wrong_folder_is_missing(own, picture):
  own.write("train/1.jpg", picture(1))
  own.write("train/2.jpg", picture(2))
  own.write("train/3.jpg", picture(3))
  own.write("val/4.jpg", picture(4))
  # No val/1.jpg is there, no extra/2.jpg of test, and 3.png is a mask.
  own.write("masks/5.png", picture(5))
  names = (
    "train/1.jpg",
    "train/2.jpg",
    "train/3.jpg",
    "val/4.jpg",
    "val/1.jpg",
    "test/2.jpg",
    "5.jpg",
  )
  own.write("captions.csv", "image,caption\n" + "\n".join(f"{n},dog {n}" for n in names))
  splits = own()
  assert any("missing: 3 " in x and "(val/1.jpg, test/2.jpg, 5.jpg)" in x for x in splits.lines)
  assert sum(len(part.image_names) for part in splits.values()) == 4


def test_two_names_of_one_file_are_refused(own, picture):
  own.write("1.jpg", picture(1))
  own.write("captions.csv", "image,caption\ncats/1.jpg,cat\ndogs/1.jpg,dog\n")
  with pytest.raises(UserError, match="line 3: image dogs/1.jpg is the file 1.jpg, as cats/1.jpg"):
    own()


@pytest.mark.parametrize("name", ["..", "a/..", "/", ".", "\\", "x\0y"])
def test_what_names_no_file_is_refused(own, name):
  own.images()
  own.write("captions.jsonl", json.dumps({"image": name, "caption": "dog"}))
  with pytest.raises(UserError, match="captions.jsonl"):
    own()
