"""Correlation with human judgements against scipy, loops and the real ratings."""

import gzip
import json

import numpy as np
import pytest
from scipy import stats

from xmr.errors import UserError
from xmr.eval import sts

HEADER = "caption1,caption2,agg_score,sampling_method\n"


def test_spearman_equals_scipy_with_ties():
  rng = np.random.default_rng(0)
  for decimals in (0, 1, 6):
    x, y = np.round(rng.normal(size=(2, 300)), decimals)
    assert sts.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
  assert sts.spearman(np.ones(5), np.arange(5)) == 0


def test_sampled_form_equals_a_loop_over_queries():
  rng = np.random.default_rng(1)
  text = rng.normal(size=(60, 4))
  pairs = rng.integers(60, size=(200, 2))
  cosine = [text[a] @ text[b] / np.linalg.norm(text[a]) / np.linalg.norm(text[b]) for a, b in pairs]
  score = np.clip(np.array(cosine) * 2 + 2.5 + rng.normal(size=200), 0, 5)
  np.testing.assert_allclose(sts.pair_cosines(text, pairs), cosine, atol=1e-6)
  assert sts.sts_correlation(text, pairs, score, form="plain") == {
    "sts/spearman": pytest.approx(stats.spearmanr(cosine, score).statistic, abs=1e-3)
  }
  estimates = []
  for _ in range(400):
    query = rng.choice(np.unique(pairs[:, 0]), len(np.unique(pairs[:, 0])) // 2, replace=False)
    chosen = [rng.choice(np.flatnonzero(pairs[:, 0] == q)) for q in query]
    estimates.append(stats.spearmanr(np.array(cosine)[chosen], score[chosen]).statistic)
  found = sts.sts_correlation(text, pairs, score)
  assert found["sts/spearman"] == pytest.approx(np.mean(estimates), abs=0.02)
  assert found["sts/spearman_deviation"] == pytest.approx(np.std(estimates), rel=0.2)
  assert found == sts.sts_correlation(text, pairs, score)


def test_word_overlap_agrees_with_the_real_ratings(shared):
  """Bags of words of COCO's captions correlate with the ratings as the data's provenance says
  (0.6), shuffled do not.
  """
  with gzip.open(shared / "data/coco5k_text/dataset_coco_test5k.json.gz", "rt") as file:
    sentences = [s for image in json.load(file)["images"] for s in image["sentences"]]
  pairs, score = sts.load_sts(
    shared / "data/cxc/sts_test.csv.gz", text_id=[s["sentid"] for s in sentences]
  )
  assert len(pairs) == 44045 and len(np.unique(pairs[:, 0])) == 25000
  rng = np.random.default_rng(0)
  vectors = {}
  text = np.stack(
    [
      sum(vectors.setdefault(word, rng.normal(size=128)) for word in set(s["tokens"]))
      for s in sentences
    ]
  )
  plain = sts.sts_correlation(text, pairs, score, form="plain")["sts/spearman"]
  sampled = sts.sts_correlation(text, pairs, score, samples=20)["sts/spearman"]
  assert 0.5 < plain < 0.75
  assert sampled == pytest.approx(plain, abs=0.05)
  assert (
    abs(sts.sts_correlation(text, pairs, rng.permutation(score), form="plain")["sts/spearman"])
    < 0.03
  )


@pytest.mark.parametrize(
  "content, message",
  [
    ("caption1,agg_score\n", "lacks the columns caption2"),
    (HEADER, "holds no pairs"),
    (
      HEADER + "COCO_val2014:sentid:7,COCO_val2014:sentid:9,1.0,x\n",
      "line 2: caption id 9 is not among the 2",
    ),
    (HEADER + "COCO_val2014:sentid:7,COCO_val2014:sentid:8,5.1,x\n", "line 2: agg_score is '5.1'"),
    (HEADER + "COCO_val2014:sentid:7,eight,1.0,x\n", "line 2: caption 'eight'"),
  ],
)
def test_bad_ratings_are_one_clear_error(tmp_path, content, message):
  path = tmp_path / "sts.csv"
  path.write_text(content)
  with pytest.raises(UserError, match=message):
    sts.load_sts(path, text_id=[7, 8])
  for binary in (b"\xff\xfe\x00", b"caption1,caption2,agg_score\n" + b"x" * 200_000):
    path.write_bytes(binary)
    with pytest.raises(UserError, match="is no CSV of ratings"):
      sts.load_sts(path, text_id=[7, 8])
  (tmp_path / "sts.csv.gz").write_bytes(b"no gzip")
  with pytest.raises(UserError, match="is no CSV of ratings"):
    sts.load_sts(tmp_path / "sts.csv.gz", text_id=[7, 8])
  with pytest.raises(UserError, match="no ratings file"):
    sts.load_sts(tmp_path / "absent.csv", text_id=[7, 8])


def test_pairs_outside_the_captions_are_refused():
  with pytest.raises(UserError, match="0 to 2"):
    sts.sts_correlation(np.eye(3), [[0, 1], [1, 3]], [1.0, 2.0])
  with pytest.raises(UserError, match="sampled or plain"):
    sts.sts_correlation(np.eye(3), [[0, 1], [1, 2]], [1.0, 2.0], form="pearson")
  with pytest.raises(UserError, match="4 or more"):
    sts.sts_correlation(np.eye(3), [[0, 1], [1, 2]], [1.0, 2.0])
