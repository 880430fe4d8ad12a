"""Datasets: `load(config)` gives the splits, `xmr.data.pipeline` their batches."""

import json

from xmr.data import karpathy, labelled, own, scenes
from xmr.data.digest import digests
from xmr.data.split import Split, Splits
from xmr.data.subwords import Subwords
from xmr.data.text import Vocabulary
from xmr.errors import UserError

__all__ = [
  "DATASETS",
  "Split",
  "Splits",
  "Subwords",
  "Vocabulary",
  "build_vocabulary",
  "digests",
  "load",
  "vocabulary_from_json",
]

# config.data.name -> function of a config that returns {"train": Split, "val": Split, "test":
# Split}.
DATASETS = {
  "flickr8k": karpathy.load,
  "flickr30k": karpathy.load,
  "coco": karpathy.load,
  "karpathy": karpathy.load,
  "own": own.load,
  "scenes": scenes.load,
  "wikipedia": labelled.load,
  "wikipedia_zh": labelled.load,
  "tvgraz": labelled.load,
}


def load(config):
  """Returns the splits of the dataset that a config names.

  Args:
    config: ConfigDict; reads config.data.
  Returns:
    {"train": Split, "val": Split, "test": Split}; a split that the source does not have is absent.
  Raises:
    UserError: an unknown name, or data that is missing or not as expected.
  """
  name = config.data.name
  if name not in DATASETS:
    raise UserError(f"config.data.name is {name!r}; expected one of {', '.join(sorted(DATASETS))}")
  return DATASETS[name](config)


def build_vocabulary(splits, *, min_count=4, source="train"):
  """Returns the vocabulary of a dataset's captions.

  Args:
    splits: {name: Split} from load.
    min_count: int, words that occur fewer times are <unk>.
    source: "train": the training split (with restval where it is trained on); "all": every loaded
      split, the test captions among them, as the authors of VSE++ and IMC released it.
  Returns:
    Vocabulary.
  Raises:
    UserError: there is no training split, or source is neither.
  """
  if source not in ("train", "all"):
    raise UserError(f"config.vocabulary.splits is {source!r}; expected train or all")
  names = ["train"] if source == "train" else list(splits)
  if not set(names) <= set(splits):
    raise UserError(f"the data has only the splits {', '.join(splits)}; a vocabulary needs train")
  return Vocabulary.build((tokens for name in names for tokens in splits[name].tokens), min_count)


def vocabulary_from_json(text, *, prompt=""):
  """Returns the Vocabulary or Subwords of a run's vocabulary.json.

  Args:
    text: what `to_json` wrote.  prompt: config.data.prompt, see Subwords.
  Raises:
    UserError: another content, or a prompt for a Vocabulary, whose words are of captions alone.
  """
  try:
    content = json.loads(text)
  except ValueError as error:
    raise UserError(f"vocabulary is no JSON: {error}") from None
  if isinstance(content, dict) and "tokenizer" in content:
    return Subwords(content, prompt=prompt)
  if prompt:
    raise UserError("config.data.prompt is for runs with a tokenizer; this one has a vocabulary")
  return Vocabulary.from_json(text)
