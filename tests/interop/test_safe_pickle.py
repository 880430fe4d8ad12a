"""Reading a pickled vocabulary without unpickling it."""

import io
import json
import pickle
import pickletools
import sys
import types

import pytest

from xmr.errors import UserError
from xmr.interop import safe_pickle, vsepp

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "café", "it's"]


@pytest.fixture
def vocabulary(monkeypatch):
  """A Vocabulary object as VSE++ builds it, of a module that is gone when the file is read."""
  module = types.ModuleType("vocab")
  made = type("Vocabulary", (), {"__module__": "vocab"})
  module.Vocabulary = made
  monkeypatch.setitem(sys.modules, "vocab", module)
  found = made()
  found.word2idx = {word: number for number, word in enumerate(WORDS)}
  found.idx2word = dict(enumerate(WORDS))
  found.idx = len(WORDS)
  return found


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_vocabulary_of_every_protocol_is_read_without_its_class(
  vocabulary, protocol, tmp_path, monkeypatch
):
  (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(vocabulary, protocol))
  monkeypatch.delitem(sys.modules, "vocab")
  assert vsepp.read_vocabulary(tmp_path / "vocab.pkl") == WORDS


def test_vocabulary_of_python_2_is_read(tmp_path):
  # What Python 2.7 wrote with protocol 2: names and the special words are byte strings.
  pickled = (
    b"\x80\x02cvocab\nVocabulary\nq\x00)\x81q\x01}q\x02(U\x08idx2wordq\x03}q\x04(K\x00U\x05<pad>q\x05K\x01X\x01\x00\x00"
    b"\x00aq\x06uU\x08word2idxq\x07}q\x08(h\x05K\x00h\x06K\x01uU\x03idxq\tK\x02ub."
  )
  pickletools.dis(pickled, out=io.StringIO())
  (tmp_path / "vocab.pkl").write_bytes(pickled)
  assert vsepp.read_vocabulary(tmp_path / "vocab.pkl") == ["<pad>", "a"]


@pytest.mark.parametrize(
  "content",
  [
    {
      "word2idx": {w: i for i, w in enumerate(WORDS)},
      "idx2word": {str(i): w for i, w in enumerate(WORDS)},
      "idx": 8,
    },
    {w: i for i, w in enumerate(WORDS)},
    {"words": WORDS},
  ],
)
def test_vocabulary_of_json_is_read(content, tmp_path):
  (tmp_path / "vocab.json").write_text(json.dumps(content))
  assert vsepp.read_vocabulary(tmp_path / "vocab.json") == WORDS


class Trap:
  """Pickled, it writes a file when it is unpickled."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def hostile(path):
  """Pickles that would run something."""
  import os

  yield pickle.dumps(Trap(open, str(path), "w"))
  yield pickle.dumps({"word2idx": Trap(os.system, f"touch {path}")}, 0)
  yield b"\x80\x02cvocab\nVocabulary\nX\x01\x00\x00\x00a\x85\x81."  # a class made with an argument
  yield b"\x80\x02cos\nsystem\n)\x81}b."  # another class
  yield b"(S'touch x'\nios\nsystem\n."  # the INST instruction
  # attributes that are no dictionary
  yield b"\x80\x02cvocab\nVocabulary\n)\x81cos\nsystem\n}\x86b."
  yield b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01xQ."  # a persistent id


def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path):
  for number, data in enumerate(hostile(tmp_path / "executed")):
    with pytest.raises(
      UserError, match="vocab.pkl: no pickle of plain data .*; nothing was executed"
    ) as error:
      safe_pickle.read(data, classes=("Vocabulary",), source="vocab.pkl")
    assert "\n" not in str(error.value), number
  assert not (tmp_path / "executed").exists()


def test_a_cut_or_damaged_pickle_is_refused(vocabulary):
  whole = pickle.dumps(vocabulary)
  for end in range(len(whole)):
    with pytest.raises(UserError):
      safe_pickle.read(whole[:end], classes=("Vocabulary",), source="vocab.pkl")
  for place in range(0, len(whole), 3):
    damaged = whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
    try:
      safe_pickle.read(damaged, classes=("Vocabulary",), source="vocab.pkl")
    except UserError:
      pass


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("{", "not a JSON file"),
    ("[1]", "holds no vocabulary"),
    ('{"word2idx": {}}', "holds no vocabulary"),
    ('{"a": 0, "b": 2}', "its 2 words are not numbered 0 to 1"),
    ("", "no pickle of plain data"),
  ],
)
def test_another_file_is_named(content, words, tmp_path):
  (tmp_path / "vocab.json").write_text(content)
  with pytest.raises(UserError, match="vocab.json") as error:
    vsepp.read_vocabulary(tmp_path / "vocab.json")
  assert words in str(error.value)


def test_an_absent_vocabulary_is_named(tmp_path):
  with pytest.raises(UserError, match="cannot be read"):
    vsepp.read_vocabulary(tmp_path / "absent.pkl")
