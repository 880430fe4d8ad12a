"""The tokenizer of a Hugging Face folder, as the content of an xmr.data.Subwords."""

import pathlib

from xmr.data.subwords import Subwords
from xmr.interop.folders import read_json


def read_subwords(folder, *, size, context, fill=False, end=False):
  """The content of a Subwords from a folder with tokenizer.json and tokenizer_config.json.

  Args:
    folder: path.  size: rows of the embedding.  context: most tokens of a text.
    fill: pad every text to the context.  end: end the text at the first end-of-text token.
  Returns:
    dict, see Subwords.
  Raises:
    UserError: a file that is missing, broken or of another model.
  """
  path = pathlib.Path(folder) / "tokenizer.json"
  tokenizer = read_json(path)
  settings = path.with_name("tokenizer_config.json")
  settings = read_json(settings) if settings.is_file() else {}
  kind = settings.get("tokenizer_class", "")
  ids = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
  model = tokenizer.get("model", {})
  ids = (model["vocab"] if isinstance(model.get("vocab"), dict) else {}) | ids

  if kind == "Siglip2Tokenizer":
    # transformers lower-cases texts for such a folder, whether or not its tokenizer.json says so.
    parts = [{"type": "Lowercase"}, tokenizer.get("normalizer")]
    sequence = {"type": "Sequence", "normalizers": [part for part in parts if part]}
    tokenizer = {**tokenizer, "normalizer": sequence}
  left = kind.startswith(("Siglip2Tokenizer", "GemmaTokenizer"))

  def token(name):
    found = settings.get(name)
    return ids.get(found["content"] if isinstance(found, dict) else found)

  pad = token("pad_token")
  content = {
    "tokenizer": tokenizer,
    "size": size,
    "context": context,
    "pad": 0 if pad is None else pad,
    "fill": fill,
    "end": None,
    "side": settings.get("padding_side", "left" if left else "right"),
    "clean": kind == "SiglipTokenizer" and (settings.get("do_lower_case", True) or "cased"),
  }
  made = Subwords(content, where=str(path))
  if end:
    content["end"] = int(made.encode_texts([""])[0][0, 1])
  return content


def read_for(folder, *, encoder, context=0):
  """The content of a Subwords for the text encoder of a config.

  Args:
    folder: with tokenizer.json; its config.json, where there is one, gives the number of rows of
      the embedding.
    encoder: config.model.text.name; CLIP and SigLIP end and pad texts in their own ways.
    context: most tokens of a text; 0 takes the folder's own, or 77.
  Raises:
    UserError: as read_subwords.
  """
  folder = pathlib.Path(folder)
  config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
  config = config.get("text_config") or config
  size = config.get("vocab_size") or _ids(folder / "tokenizer.json")
  content = read_subwords(
    folder,
    size=size,
    context=context or config.get("max_position_embeddings") or 77,
    fill=encoder == "siglip_text",
    end=encoder == "clip_text",
  )
  if encoder == "mpnet":
    content["pad"] = 1
  return content


def _ids(path):
  vocabulary = read_json(path).get("model", {}).get("vocab", {})
  added = [token["id"] for token in read_json(path).get("added_tokens", ())]
  # Unigram tokenizers list their pieces, the others number theirs.
  ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
  return max([*ids, *added], default=-1) + 1
