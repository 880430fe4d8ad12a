import json

import numpy as np
import pytest

from xmr import data
from xmr.inspect import negatives


def test_relevance_is_that_of_the_evaluation():
  assert negatives.relevance("a dog runs", ["a dog runs", "the cat"]) == pytest.approx(1)
  assert negatives.relevance("zebra", ["a dog runs"]) == 0


def test_the_mined_caption_is_the_nearest_of_another_image(trained, run, command):
  command("-m", "xmr.inspect.negatives", f"--workdir={trained}", "--queries=15")
  found = json.loads((trained / "negatives.json").read_text())
  assert len(found["negatives"]) == 15
  split = data.load(run.config)["train"]
  image, text = run.embeddings(split)
  scores = image @ text.T
  for entry in found["negatives"]:
    row = list(split.image_id).index(entry["image"])
    own = split.image_of_text == row
    assert entry["score"] == pytest.approx(np.max(scores[row][~own]), abs=1e-6)
    assert entry["positive"] == pytest.approx(np.max(scores[row][own]), abs=1e-6)
    assert entry["negative_of"] != entry["name"]
  assert found["shares"]["own"]["mean"] > found["shares"]["random"]["mean"]
  assert "| mined |" in (trained / "negatives.md").read_text()


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "--workdir is missing"),
    (["--workdir=nowhere"], "nowhere"),
    (["--workdir=x", "--queries=0"], "--queries is 0"),
  ],
)
def test_mistakes_end_with_one_line(arguments, message, command):
  done = command("-m", "xmr.inspect.negatives", *arguments, code=2)
  assert done.stderr.count("\n") == 1 and message in done.stderr
