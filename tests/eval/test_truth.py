"""What a metric may know of a split: COCO's numbers of images, and one list of metrics on them."""

import json

import numpy as np

from xmr.config import base_config
from xmr.data import Split
from xmr.eval import results, truth


def test_images_of_coco_have_the_numbers_of_their_files():
  names = ["COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000000042.jpg"]
  found = truth.coco_ids(names, otherwise=np.array([0, 1]))
  np.testing.assert_array_equal(found, [391895, 42])
  for other in ("1000268201_693b08cb0e.jpg", "COCO.jpg", "COCO_val2014_x.jpg"):
    np.testing.assert_array_equal(truth.coco_ids([names[0], other], otherwise=np.arange(2)), [0, 1])


def test_a_run_scores_extra_positives_and_human_judgements_by_the_ids_of_its_split(tmp_path):
  rng = np.random.default_rng(0)
  owner, coco = np.arange(40) // 2, 700 + np.arange(20)
  image = rng.normal(size=(20, 6)).astype(np.float32)
  text = image[owner] + rng.normal(size=(40, 6)).astype(np.float32)
  texts = [f"caption number {t}" for t in range(40)]
  split = Split(
    "test",
    *(x.astype(np.int32) for x in (np.arange(20), 9000 + np.arange(40), owner)),
    [f"COCO_val2014_{number:012d}.jpg" for number in coco],
    texts,
    [each.split() for each in texts],
  )
  for name in ("eccv", "cxc"):
    i2t = {str(number): [9000 + 2 * j, 9001 + 2 * j] for j, number in enumerate(coco)}
    t2i = {str(9000 + t): [int(coco[j])] for t, j in enumerate(owner)}
    (tmp_path / f"{name}_image_to_caption.json").write_text(json.dumps(i2t))
    (tmp_path / f"{name}_caption_to_image.json").write_text(json.dumps(t2i))
  rows = [
    f"COCO_val2014:sentid:{9000 + a},COCO_val2014:sentid:{9001 + a},{a % 5}" for a in range(39)
  ]
  (tmp_path / "sts.csv").write_text("\n".join(["caption1,caption2,agg_score", *rows]) + "\n")
  config = base_config()
  config.data.dir = str(tmp_path)
  config.evaluate.update({"positives": ".", "sts": "sts.csv", "consistency": True})
  results.check(config, split)
  found = results.report(image, text, split, config=config, step=1)["metrics"]
  for direction in ("i2t", "t2i"):
    for k in (1, 5, 10):
      assert found[f"eccv/{direction}/r{k}"] == found[f"{direction}/r{k}"]
  assert -1 <= found["sts/spearman"] <= 1 and 0 <= found["order/pair"] <= 1
