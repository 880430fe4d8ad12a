"""Texts as ids of sub-words, by a tokenizer of the library `tokenizers`."""

import json
import re
import string
import sys

import numpy as np

from xmr.errors import UserError


class Subwords:
  """A tokenizer in place of a run's Vocabulary; it is kept as JSON, too.

  Args:
    content: dict with
      tokenizer: the content of tokenizer.json;  size: rows of the embedding;
      context: most tokens of a text, special tokens included;  pad: id behind the text;
      end: id whose first occurrence ends the text (CLIP), "highest" for the highest of the text, or
      None;
      fill: True where every text is padded to the context, as SigLIP was trained;
      side: "right" or "left", where padding stands;
      clean: True where punctuation and capitals are dropped first, as SigLIP's own tokenizer does;
      "cased" where punctuation alone.
    prompt: template with {} for the caption; "" is the caption alone.
    where: the file it is from, for errors.
  Raises:
    UserError: no tokenizer, the package `tokenizers` is missing, ids that do not fit the embedding,
      or a prompt without {}.
  """

  def __init__(self, content, *, prompt="", where="vocabulary.json"):
    try:
      import tokenizers
    except ImportError:
      raise UserError(
        f"{where}: needs the package tokenizers: pip install -e '.[convert]'"
      ) from None
    self.content, self.prompt = content, prompt
    self.context = content["context"]
    if prompt and prompt.count("{}") != 1:
      raise UserError(f"config.data.prompt is {prompt!r}; expected one {{}} where the caption goes")
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"]))
    except Exception as error:
      raise UserError(f"{where}: not a tokenizer ({error})") from None
    self._tokenizer.no_padding()
    ids = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    # An embedding table may be padded up to a round size, never by more than a block of 128.
    if not ids <= content["size"] < ids + 128:
      raise UserError(
        f"{where}: has {ids} ids, config.json has vocab_size {content['size']}; they are of two "
        "models"
      )
    self._told = set()

  @classmethod
  def from_json(cls, text, *, prompt=""):
    """The tokenizer that to_json wrote."""
    return cls(json.loads(text), prompt=prompt)

  def to_json(self):
    """JSON text that from_json reads back; the prompt is of the config."""
    return json.dumps(self.content, ensure_ascii=False)

  def __len__(self):
    return self.content["size"]

  def __contains__(self, word):
    del word
    return True  # Any word is made of sub-words.

  def length(self, wanted=0):
    """Tokens of a row of a batch: `wanted`, at most the context; the context where 0 or filled."""
    filled = self.content["fill"] or not wanted
    return self.context if filled else min(wanted, self.context)

  def encode_texts(self, texts, *, length=None):
    """Ids of texts.

    Args:
      texts: T str; an empty one has only its special tokens.
      length: int L; None is that of `length()`.
    Returns:
      text: [T, L] int32, padded.  text_length: [T] int32, tokens with the special ones.
      cut: int, texts that were longer than L and lost their last words.
    """
    length, content = length or self.length(), self.content
    if self.prompt:
      texts = [self.prompt.replace("{}", text) for text in texts]
    if content["clean"]:
      texts = [cleaned(text if content["clean"] == "cased" else text.lower()) for text in texts]
    self._tokenizer.enable_truncation(length)
    encoded = self._tokenizer.encode_batch(list(texts))
    text = np.full((len(encoded), length), content["pad"], np.int32)
    text_length = np.empty(len(encoded), np.int32)
    for row, found in enumerate(encoded):
      ids = found.ids
      if content["side"] == "left":
        text[row, length - len(ids) :] = ids
        text_length[row] = length
        continue
      text[row, : len(ids)] = ids
      end = max(ids, default=None) if content["end"] == "highest" else content["end"]
      text_length[row] = ids.index(end) + 1 if end in ids else len(ids)
    return text, text_length, sum(bool(found.overflowing) for found in encoded)

  def pieces(self, ids):
    """The sub-words [W] str of ids [W]."""
    return [str(self._tokenizer.id_to_token(int(number))) for number in ids]

  def encode_batch(self, texts):
    """(text, text_length) of texts that a user gives, see encode_texts."""
    return self.encode_texts(texts)[:2]

  def encode_split(self, split, *, length=None):
    """(text, text_length) of the captions of an xmr.data.Split; says once how many were cut."""
    text, text_length, cut = self.encode_texts(split.texts, length=length)
    if cut and split.name not in self._told:
      self._told.add(split.name)
      print(
        f"{split.name}: {cut:,} of {len(text):,} captions have more than {text.shape[1]} tokens "
        "and lose their last words",
        file=sys.stderr,
      )
    return text, text_length


def cleaned(text):
  """A text without ASCII punctuation, as SigLIP's captions were."""
  text = text.translate(str.maketrans("", "", string.punctuation))
  return re.sub(r"\s+", " ", text).strip()
