"""Tokens against NLTK, the vocabulary, GloVe."""

import gzip
import json
import random

import numpy as np
import pytest

from xmr.data.text import ABBREVIATIONS, SPECIAL, Vocabulary, encode_all, load_glove, tokenize
from xmr.errors import UserError


@pytest.fixture(scope="module")
def nltk_tokens():
  """nltk.word_tokenize with our abbreviations in place of the Punkt model, which NLTK would have to
  download.
  """
  destructive = pytest.importorskip("nltk.tokenize.destructive")
  punkt = pytest.importorskip("nltk.tokenize.punkt")
  parameters = punkt.PunktParameters()
  parameters.abbrev_types = set(ABBREVIATIONS)
  sentences, words = punkt.PunktSentenceTokenizer(parameters), destructive.NLTKWordTokenizer()
  return lambda text: [
    token for part in sentences.tokenize(text.lower()) for token in words.tokenize(part)
  ]


def captions(path):
  opener = gzip.open if path.suffix == ".gz" else open
  with opener(path, "rt", encoding="utf-8") as file:
    return [
      sentence["raw"] for image in json.load(file)["images"] for sentence in image["sentences"]
    ]


@pytest.mark.parametrize(
  ("file", "every"),
  [
    ("flickr8k/dataset_flickr8k.json", 4),
    pytest.param("flickr30k_text/dataset_flickr30k.json.gz", 16, marks=pytest.mark.slow),
    ("coco5k_text/dataset_coco_test5k.json.gz", 3),
  ],
)
def test_tokens_equal_nltk_on_real_captions(shared, nltk_tokens, file, every):
  # Captions with punctuation inside are all compared: they are the hard ones.
  texts = captions(shared / "data" / file)
  hard = [text for text in texts if any(c in text[:-2] for c in "\"'`.?!;:")][:6000]
  wrong = [text for text in hard + texts[::every] if tokenize(text) != nltk_tokens(text)]
  assert not wrong


@pytest.mark.parametrize(
  "text",
  [
    "Don't you cannot; she'll wanna go, they've gonna see l'oreal's.",
    'A sign says "STOP". The man (old) waits... for 1,000 u.s. dollars!',
    "Mr. Smith no. 4 went. The dog's ball -- 3.5 m: 10:30.",
    'Letter " P. "',
    'asking "Where are you?".',
    "`` no parking '' and `` no skateboards . ''",
    "'tis a rock 'n' roll band's 50% * off; more'n #1 @ home",
    "“Curly” quotes – and ‘more’ — dashes",
    "",
    " . ",
  ],
)
def test_tokens_equal_nltk_on_hard_cases(nltk_tokens, text):
  assert tokenize(text) == nltk_tokens(text)


def test_tokens_equal_nltk_on_random_strings(nltk_tokens):
  rng = random.Random(0)
  parts = [
    "dog",
    "can",
    "cannot",
    "wanna",
    "don't",
    "'s",
    "'ll",
    '"',
    ".",
    "...",
    "?",
    ",",
    ":",
    "3.5",
    "(",
    ")",
    "--",
    "é",
  ]
  texts = [
    "".join(rng.choice(parts) + rng.choice(["", " "]) for _ in range(rng.randint(1, 8)))
    for _ in range(3000)
  ]
  wrong = [text for text in texts if tokenize(text) != nltk_tokens(text)]
  assert len(wrong) <= 3, wrong  # A few strings that nobody writes, such as "dog ' -.!".


def test_tokens_need_no_nltk():
  assert tokenize("A dog's Ball. Two men!") == ["a", "dog", "'s", "ball", ".", "two", "men", "!"]


def test_vocabulary_has_special_words_first_then_frequent_words_in_sorted_order():
  vocabulary = Vocabulary.build([["dog", "a", "cat"], ["a", "dog", "<unk>"], ["a"]], min_count=2)
  assert vocabulary.words == [*SPECIAL, "a", "dog"]
  assert vocabulary.counts == [0, 0, 0, 1, 3, 2]
  assert vocabulary.encode(["dog", "cat", "a"]) == [1, 5, 3, 4, 2]


def test_vocabulary_survives_json():
  vocabulary = Vocabulary.build([["café", "a"]] * 4)
  again = Vocabulary.from_json(vocabulary.to_json())
  assert (again.words, again.counts) == (vocabulary.words, vocabulary.counts)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "[]",
    "{}",
    '{"words": "abc"}',
    '{"words": ["a"]}',
    '{"words": ["<pad>", "<start>", "<end>", "<unk>", "a", "a"]}',
  ],
)
def test_broken_vocabulary_is_refused(text):
  with pytest.raises(UserError, match="vocabulary"):
    Vocabulary.from_json(text)


def test_long_caption_is_cut_but_keeps_its_end():
  vocabulary = Vocabulary.build([list("abcd")], min_count=1)
  text, length = encode_all([list("abcd"), ["a"], []], vocabulary, length=4)
  assert text.tolist() == [[1, 4, 5, 2], [1, 4, 2, 0], [1, 2, 0, 0]]
  assert length.tolist() == [4, 3, 2]
  assert text.dtype == length.dtype == np.int32


@pytest.fixture
def glove(tmp_path):
  def write(content):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path

  return write


def test_glove_finds_words_by_the_released_fallback_and_reports_coverage(glove):
  path = glove("dog 1 2 3\ntshirt 4 5 6\nhe 7 8 9\n. . 0 0 0\nunneeded 1 1 1\n")
  words = ["dog", "t-shirt", "he/she", "zebra"]
  vocabulary = Vocabulary.build([*[[*words, "dog", "rare"]] * 3, words])
  matrix, report = load_glove(path, vocabulary, seed=0)
  row = {word: matrix[i].tolist() for i, word in enumerate(vocabulary.words)}
  assert (row["dog"], row["t-shirt"], row["he/she"]) == ([1, 2, 3], [4, 5, 6], [7, 8, 9])
  assert matrix.dtype == np.float32 and matrix.shape == (8, 3)
  assert report == {
    "dim": 3,
    "types": 4,
    "types_found": 3,
    "types_by_fallback": 2,
    "tokens": 22,
    "tokens_found": 15,
  }


def test_missing_words_are_standard_normal_or_match_the_vectors(glove):
  rng = np.random.default_rng(0)
  known = [f"known{i}" for i in range(40)]
  path = glove(
    "".join(f"{word} {' '.join(f'{x:.5f}' for x in rng.normal(0, 0.1, 50))}\n" for word in known)
  )
  vocabulary = Vocabulary.build([known, [f"absent{i}" for i in range(40)]], min_count=1)
  absent = [i for i, word in enumerate(vocabulary.words) if word.startswith("absent")]
  normal, _ = load_glove(path, vocabulary, seed=1)
  matched, _ = load_glove(path, vocabulary, seed=1, missing="matched")
  assert 0.95 < normal[absent].std() < 1.05
  assert 0.095 < matched[absent].std() < 0.105
  np.testing.assert_array_equal(normal, load_glove(path, vocabulary, seed=1)[0])
  assert not np.array_equal(normal, load_glove(path, vocabulary, seed=2)[0])


def test_word2vec_header_and_unicode_line_ends_are_read(glove):
  path = glove("2 3\ndo\u2028g 1 2 3\ncat 4 5 6\r\n")
  vocabulary = Vocabulary.build([["cat"]], min_count=1)
  assert load_glove(path, vocabulary, seed=0)[0][4].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("", "empty"),
    ("dog 1 2\nother 1\n", "line 2: 1 numbers"),
    ("dog 1 2\nother 1 2 3\n", "line 2: more than 2 numbers"),
    ("cat 1 2\ndog 1 x\n", "line 2: the vector of 'dog' is not 2 numbers"),
    ("dog 1 nan\n", "line 1: .* NaN"),
    ("dog\n", "line 1: 0 numbers"),
  ],
)
def test_malformed_glove_line_is_named(glove, content, message):
  with pytest.raises(UserError, match=message):
    load_glove(glove(content), Vocabulary.build([["dog"]], min_count=1), seed=0)


def test_absent_glove_file_is_named(tmp_path):
  with pytest.raises(UserError, match="config.vocabulary.glove: .*absent.txt"):
    load_glove(tmp_path / "absent.txt", Vocabulary.build([["dog"]], min_count=1), seed=0)


def test_real_vectors_cover_flickr8k(shared):
  texts = captions(shared / "data/flickr8k/dataset_flickr8k.json")
  vocabulary = Vocabulary.build(map(tokenize, texts[:30000]))
  matrix, report = load_glove(shared / "data/glove/glove.6B.200d.subset.txt", vocabulary, seed=0)
  assert matrix.shape == (len(vocabulary), 200)
  assert report["types_found"] > 2000 and report["tokens_found"] > 0.7 * report["tokens"]
