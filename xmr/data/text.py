"""Words: tokens as NLTK makes them, a vocabulary kept as JSON, GloVe vectors."""

import collections
import json
import re

import numpy as np

from xmr.data.files import opened
from xmr.errors import UserError

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")

ABBREVIATIONS = frozenset(
  "mr mrs ms dr st jr sr vs etc co corp inc ltd dept prof gen col sgt lt capt rev ft mt ave blvd "
  "rd no approx "
  "u.s u.k u.n n.y l.a d.c a.m p.m e.g i.e b.c a.d jan feb aug sept oct nov dec".split()
)  # a period after one of these does not end a sentence

# Punkt's ideas of where a sentence may end, which word stands before, and what still belongs to the
# sentence.
_END = re.compile(r"[.?!](?=[\"')\];}*:@({\[!?]|\s+\S)")
_NOT_OF_A_WORD = frozenset("?!)\";}]*:@'({[")
_CLOSING = re.compile(r"[\"')\]}]+(?:\s+|(?=--)|$)")
_BLANKS = re.compile(r"\s*")
# Punkt then splits before that word too: u.s. | troops." The shortest match, so that a long run
# without blanks is read once.
_NEXT_ENDS = re.compile(r"\S*?[.?!][\"')\];}*:@({\[!?]")
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")

# The Penn Treebank conventions, in the order in which NLTK's NLTKWordTokenizer applies them; for
# lower-case text.
_RULES = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r"([«“‘„]|`+)", r" \1 "),
    (r"^\"", r"``"),
    (r"``", r" `` "),
    (r"([ (\[{<])(?:\"|'')", r"\1 `` "),
    (r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", r"' "),
    (r"([^.])\.([\])}>\"'»”’ ]*+)\s*$", r"\1 . \2 "),
    (r"([:,])(\D)", r" \1 \2"),
    (r"([:,])$", r" \1 "),
    (r"\.{2,}|[;@#$%&\u2012-\u2015?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[*\]\[(){}<>]", r" \g<0> "),
    (r"--", r" -- "),
    (r"^|$", " "),
    (r"[»”’]", r" \g<0> "),
    (r"''|\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[smd]?) ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (
      r"\b(can)(not)\b|\b(d)('ye)\b|\b(gim)(me)\b|\b(gon)(na)\b|\b(got)(ta)\b|\b(lem)(me)\b|\b(more)('n)\b",
      None,
    ),
    (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r" ('t)(is|was)\b", r" \1 \2 "),
  )
]
# Most captions: words, hyphens and commas between them, one period at the end. Splitting at those
# is all that the rules do.
_PLAIN = re.compile(r"(?:[a-z0-9]+(?:-| ?, | ))*[a-z0-9]+ ?\.?\s*")
_SPLIT_WORDS = re.compile(r"cannot|gimme|gonna|gotta|lemme|wanna")


def _sentences(text):
  """Splits lower-case text into sentences by the rules of NLTK's Punkt."""
  start = 0
  for match in _END.finditer(text):
    end = match.end()
    if end <= start:
      continue
    blanks = _BLANKS.match(text, end)
    begin = blanks.end() if blanks else end
    if match.group() == "." and not _NEXT_ENDS.match(text, begin):
      if not _period_ends_sentence(_last_word(text, start, end - 1), text[begin : begin + 1]):
        continue
    closing = _CLOSING.match(text, begin)
    if closing:
      end, begin = begin + len(closing.group().rstrip()), closing.end()
    yield text[start:end]
    start = begin
  yield text[start:]


def _last_word(text, start, end):
  """Returns the word that ends at `end`, with the apostrophe before it; looks from its end, so that
  no period reads the whole sentence again.
  """
  first = end
  while first > start and text[first - 1] not in _NOT_OF_A_WORD and not text[first - 1].isspace():
    first -= 1
  return text[first - 1 if first > start and text[first - 1] == "'" else first : end]


def _period_ends_sentence(word, following):
  word = word.lstrip("`&#-,")
  if word.endswith(".") or word in ABBREVIATIONS or word.rpartition("-")[2] in ABBREVIATIONS:
    return False
  # An initial or a number goes on before a lower-case word: "george w. bush", "no 4. the".
  open_ended = (len(word) == 1 and word.isalpha()) or _NUMBER.fullmatch(word)
  return not (open_ended and (following.islower() or following in ";:,.!?"))


def tokenize(text):
  """Returns the lower-case tokens of a caption, as nltk.word_tokenize(text.lower()) gives them,
  without NLTK's downloads.

  Sentence ends inside the caption follow Punkt's rules with our own short list of abbreviations
  (ABBREVIATIONS) in place of its trained model; words follow NLTKWordTokenizer.

  Args:
    text: str.
  Returns:
    list of str; punctuation is a token of its own.
  """
  text = text.lower()
  if _PLAIN.fullmatch(text) and not _SPLIT_WORDS.search(text):
    return text.replace(",", " , ").replace(".", " . ").split()
  tokens = []
  for sentence in _sentences(text):
    for pattern, replacement in _RULES:
      if replacement is None:
        sentence = pattern.sub(
          lambda found: " " + " ".join(filter(None, found.groups())) + " ", sentence
        )
      else:
        sentence = pattern.sub(replacement, sentence)
    tokens += sentence.split()
  return tokens


class Vocabulary:
  """Words with their numbers: <pad> 0, <start> 1, <end> 2, <unk> 3, then the words in sorted order.

  Sorted, so that the numbers do not depend on the order in which captions were read.

  Attributes:
    words: list of str, by number.
    counts: list of int, occurrences where the vocabulary was built; that of <unk> is the sum over
      the rare words.
  """

  def __init__(self, words, counts=None):
    self.words = list(words)
    self.counts = [0] * len(self.words) if counts is None else [int(count) for count in counts]
    self._number = {word: number for number, word in enumerate(self.words)}
    if tuple(self.words[: len(SPECIAL)]) != SPECIAL:
      raise UserError(
        f"vocabulary starts with {self.words[: len(SPECIAL)]}; expected {list(SPECIAL)}"
      )
    if len(self._number) != len(self.words) or len(self.counts) != len(self.words):
      raise UserError(
        f"vocabulary has {len(self.words)} words, {len(self._number)} distinct, and "
        f"{len(self.counts)} counts; "
        "expected the same number of each"
      )

  @classmethod
  def build(cls, token_lists, min_count=4):
    """Returns the vocabulary of all words that occur at least min_count times in an iterable of
    token lists.
    """
    seen = collections.Counter()
    for tokens in token_lists:
      seen.update(tokens)
    for word in SPECIAL:
      seen.pop(word, None)
    words = sorted(word for word, count in seen.items() if count >= min_count)
    counts = [seen[word] for word in words]
    return cls([*SPECIAL, *words], [0, 0, 0, seen.total() - sum(counts), *counts])

  def extended(self, token_lists, min_count=1):
    """Returns this vocabulary with the words of an iterable of token lists that it lacks and that
    occur at least min_count times, sorted, after its own; these keep their numbers.
    """
    seen = collections.Counter(
      token for tokens in token_lists for token in tokens if token not in self
    )
    words = sorted(word for word, count in seen.items() if count >= min_count)
    return type(self)([*self.words, *words], [*self.counts, *(seen[word] for word in words)])

  def unknown(self, token_lists):
    """Returns (tokens that are <unk>, all tokens) of an iterable of token lists."""
    found = [token in self for tokens in token_lists for token in tokens]
    return len(found) - sum(found), len(found)

  def encode(self, tokens):
    """Returns the numbers of <start>, the tokens (<unk> for strangers) and <end>."""
    return [START, *(self._number.get(token, UNKNOWN) for token in tokens), END]

  def encode_batch(self, texts):
    """Returns (text, text_length) of texts that a user gives; UserError: one without a word."""
    tokens = [tokenize(text) for text in texts]
    for place, found in enumerate(tokens):
      if not found:
        raise UserError(f"text {place} is empty; expected words")
    longest = max(map(len, tokens)) + 2
    # Few different lengths, as each is compiled; what lies behind the end is masked.
    return encode_all(tokens, self, length=longest + -longest % 16)

  def encode_split(self, split, *, length=None):
    """Returns (text, text_length) of the captions of a Split, see encode_all; length None is that
    of its longest.
    """
    return encode_all(split.tokens, self, length=length or split.max_length())

  def __len__(self):
    return len(self.words)

  def __contains__(self, word):
    return word in self._number

  def to_json(self):
    """Returns a JSON text that from_json reads back."""
    return json.dumps({"words": self.words, "counts": self.counts}, ensure_ascii=False)

  @classmethod
  def from_json(cls, text):
    """Returns the vocabulary of a JSON text; UserError when it is none."""
    try:
      content = json.loads(text)
      words, counts = content["words"], content.get("counts")
      if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError("words is no list of strings")
      return cls(words, counts)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
      raise UserError(
        f'vocabulary is no JSON of the form {{"words": [...], "counts": [...]}}: {error}'
      ) from None


def encode_all(token_lists, vocabulary, *, length):
  """Returns captions as one padded matrix of word numbers.

  Args:
    token_lists: T lists of str, without <start> and <end>.
    vocabulary: Vocabulary.
    length: int L, at least 2, with <start> and <end>; a longer caption loses its last words but
      keeps <end>.
  Returns:
    text: [T, L] int32, <pad> (0) after the end.  text_length: [T] int32.
  """
  if length < 2:
    raise UserError(f"config.data.max_length is {length}; expected at least 2: <start> and <end>")
  text = np.full((len(token_lists), length), PAD, np.int32)
  text_length = np.empty(len(token_lists), np.int32)
  for row, tokens in enumerate(token_lists):
    numbers = vocabulary.encode(tokens[: length - 2])
    text[row, : len(numbers)] = numbers
    text_length[row] = len(numbers)
  return text, text_length


def load_glove(path, vocabulary, *, seed, missing="normal"):
  """Returns initial word vectors from a GloVe text file, and how much of the vocabulary it covers.

  The file is read once, line by line; only vectors that are needed are parsed. A word that is
  absent is tried again without "-", "." and "'" and cut at "/", as released; one that is still
  absent gets a random vector.

  Args:
    path: text file, a word and its floats per line, separated by single spaces; any dimension; a
      first line of two integers (word2vec's header) is skipped. Words may hold spaces, as some in
      840B do.
    vocabulary: Vocabulary of V words.
    seed: int, of the random vectors.
    missing: "normal": N(0, 1), as released; "matched": N(0, the standard deviation of the vectors
      found).
  Returns:
    matrix: [V, dim] float32.
    report: dict of dim; types, types_found, types_by_fallback (words of the vocabulary but the four
      special ones); tokens, tokens_found (occurrences where the vocabulary was built, rare words
      among them).
  Raises:
    UserError: no file, or a line that is malformed, with its number.
  """
  if missing not in ("normal", "matched"):
    raise UserError(f"config.vocabulary.glove_missing is {missing!r}; expected normal or matched")
  fallback = {word: re.sub(r"[-.']", "", word).split("/")[0] for word in vocabulary.words}
  wanted = {word.encode() for word in vocabulary.words} | {
    word.encode() for word in fallback.values()
  }
  vectors, dim = _read_vectors(path, wanted - {b""})

  deviation = 1.0
  if missing == "matched" and vectors:
    deviation = float(np.std(np.stack(list(vectors.values()))))
  generator = np.random.Generator(np.random.Philox(key=seed))
  matrix = generator.normal(0.0, deviation, (len(vocabulary), dim)).astype(np.float32)
  found, by_fallback = [], 0
  for number, word in enumerate(vocabulary.words):
    vector = vectors.get(word.encode())
    if vector is None:
      vector = vectors.get(fallback[word].encode())
      by_fallback += vector is not None and number >= len(SPECIAL)
    if vector is not None:
      matrix[number] = vector
      found.append(number)
  found = [number for number in found if number >= len(SPECIAL)]
  return matrix, {
    "dim": dim,
    "types": len(vocabulary) - len(SPECIAL),
    "types_found": len(found),
    "types_by_fallback": int(by_fallback),
    "tokens": sum(vocabulary.counts),
    "tokens_found": sum(vocabulary.counts[number] for number in found),
  }


def _read_vectors(path, wanted):
  """Returns ({word: [dim] float32}, dim) for the words (bytes) that are wanted."""
  vectors, dim = {}, None
  try:
    # Binary: some words of 840B hold Unicode line ends, which text mode would split.
    with opened(path, what="a GloVe text file", field="vocabulary.glove") as file:
      for number, line in enumerate(file, 1):
        line = line.rstrip(b"\r\n").rstrip(b" ")
        fields = line.count(b" ")
        if number == 1 and fields == 1 and line.replace(b" ", b"").isdigit():
          continue
        if dim is None:
          dim = fields
        where = f"{path}, line {number}"
        if fields < dim or dim == 0:
          raise UserError(
            f"{where}: {fields} numbers after the word; expected {dim or 'at least 1'}"
          )
        word, *values = (
          line.rsplit(b" ", dim) if fields > dim or line.partition(b" ")[0] in wanted else (None,)
        )
        if word is None:
          continue
        if fields > dim and _is_number(word.rpartition(b" ")[2]):
          raise UserError(
            f"{where}: more than {dim} numbers after the word; expected {dim} as on the first line"
          )
        if word in wanted and word not in vectors:
          try:
            vector = np.array([float(value) for value in values], np.float32)
          except ValueError:
            raise UserError(
              f"{where}: the vector of {word.decode(errors='replace')!r} is not {dim} numbers"
            ) from None
          if not np.isfinite(vector).all():
            raise UserError(
              f"{where}: the vector of {word.decode(errors='replace')!r} holds NaN or infinity"
            )
          vectors[word] = vector
  except OSError as error:
    raise UserError(
      f"config.vocabulary.glove: {path}: {error.strerror}; expected a GloVe text file"
    ) from None
  if dim is None:
    raise UserError(f"{path} is empty; expected a GloVe text file")
  return vectors, dim


def _is_number(field):
  try:
    float(field)
  except ValueError:
    return False
  return True
