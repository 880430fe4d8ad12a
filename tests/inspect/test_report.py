"""The report: one file, everything escaped, and a page that works in a browser, with keyboard and
screen reader.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from xmr.errors import UserError
from xmr.inspect import charts, page, report, study

NASTY = (
  '</script><script>document.title = "broken"</script><img src=x onerror="document.title = '
  '1"> "&amp;'
)


@pytest.fixture(scope="module")
def written(trained, earlier, tmp_path_factory):
  """The page of the run beside an earlier step, with captions and file names that try to break
  out.
  """
  from xmr import data

  real = data.load

  def nasty(config):
    splits = real(config)
    split = splits["test"]
    texts, names = list(split.texts), list(split.image_names)
    texts[::4] = [NASTY] * len(texts[::4])
    names[0], texts[3] = f"{NASTY}.png", "half a pair \ud83d"
    return {**splits, "test": dataclasses.replace(split, texts=texts, image_names=names)}

  patch = pytest.MonkeyPatch()
  patch.setattr(data, "load", nasty)
  try:
    return report.report(
      trained, compare=earlier, out=tmp_path_factory.mktemp("report") / "report.html", queries=2
    )
  finally:
    patch.undo()


def test_the_page_is_one_file_without_addresses_and_small(written):
  html = written.read_text()
  assert len(html) < 15_000_000
  assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", html.partition("</main>")[0])
  assert "default-src 'none'" in html and "http://" not in html and "https://" not in html


def test_captions_and_file_names_stay_text(written):
  html = written.read_text()
  assert "<script>document.title" not in html and "<img src=x" not in html
  assert "&lt;script&gt;document.title" in html
  data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
  assert data["texts"][0] == NASTY and data["names"][0] == f"{NASTY}.png"


def test_the_page_holds_what_was_promised(written):
  html = written.read_text()
  for part in (
    "Results",
    "Curves",
    "Search the test set",
    "ROUGE-L",
    "Worst queries",
    "Hubs",
    "Tied queries",
    "length",
    "differ most",
  ):
    assert part in html
  assert (
    "12 images and 60 captions" in html.replace("\n", " ") and "all 12 images and 60 texts" in html
  )


def test_results_are_a_matrix_of_direction_by_recall(written):
  html = written.read_text()
  table = html[html.index("Table of recall by direction") :].split("</table>")[0]
  heads = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', table)
  assert heads == ["run", "direction", "R@1", "R@5", "R@10", "median rank", "mean rank"]
  assert re.findall(r'<th scope="row">([^<]*)</th>', table) == 2 * [
    "image to text",
    "text to image",
  ]
  assert len(re.findall(r'<td class="number">[^<–]+</td>', table)) == 20


def test_the_own_image_of_a_failed_query_is_not_called_right(written):
  html = written.read_text()
  worst = html[html.index('id="worst"') : html.index('id="hubs"')]
  own = re.findall(r'<figure class="([^"]*)">(?:(?!</figure>).)*its own image', worst, re.S)
  assert len(own) == 8 and set(own) == {"tile"}


def test_long_sections_fold_and_pictures_wait_for_nothing(written):
  html = written.read_text()
  assert html.count('<details class="fold">') == 6 and "beforeprint" in html
  # A picture that is loaded when it is scrolled to is missing on paper.
  assert 'loading: "lazy"' not in html


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  """A function of (width, height) that opens headless Chromium; skipped where there is none."""
  webdriver = pytest.importorskip("selenium.webdriver")
  chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
  if not chromium or not chromedriver:
    pytest.skip(
      "no chromium and chromedriver on the path: apt-get install chromium chromium-driver"
    )
  opened = []

  def open_browser(width=1000, height=1300):
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
      "headless",
      "no-sandbox",
      "disable-gpu",
      "disable-quic",
      "no-first-run",
      "disable-background-networking",
      "disable-component-update",
      "disable-sync",
      f"user-data-dir={profile}",
    ):
      options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    opened.append(driver)
    driver.execute_cdp_cmd(
      "Emulation.setDeviceMetricsOverride",
      {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    return driver

  yield open_browser
  for driver in opened:
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, written):
  driver = browser()
  driver.get(written.as_uri())
  yield driver


def until(condition, seconds=120):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.02)


def keys(driver, *pressed):
  from selenium.webdriver import ActionChains

  ActionChains(driver).send_keys(*pressed).perform()


def said(driver):
  return driver.execute_script("return document.getElementById('said').textContent")


def test_it_opens_without_complaint_and_shows_its_pictures(opened, tmp_path_factory):
  assert opened.title.endswith("what it retrieves")
  until(lambda: opened.execute_script("return document.querySelectorAll('.study img').length") > 10)
  loaded = "return [...document.images].filter(x => x.complete && !x.naturalWidth).length"
  assert opened.execute_script(loaded) == 0
  artefact = (
    pathlib.Path(os.environ.get("XMR_ARTEFACTS") or tmp_path_factory.getbasetemp()) / "report.png"
  )
  opened.save_screenshot(str(artefact))
  with Image.open(artefact) as shot:
    assert len(shot.convert("RGB").resize((200, 260)).getcolors(60_000)) > 50
  assert opened.get_log("browser") == []


def test_the_search_filters_ranks_and_follows_results_by_keyboard_alone(opened):
  from selenium.webdriver import Keys

  keys(opened, "/")
  assert opened.switch_to.active_element.get_attribute("id") == "field"
  keys(opened, "red circle")
  until(lambda: re.match(r"\d+ captions? ha(s|ve) ", said(opened)))
  captions = opened.execute_script(
    "return [...document.querySelectorAll('#found .caption')].map(x => x.textContent)"
  )
  assert captions and all("red" in text or "circle" in text for text in captions)
  keys(opened, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER)
  until(lambda: said(opened).startswith("Query: image"))
  assert opened.execute_script("return location.hash").startswith("#i")
  titles = opened.execute_script(
    "return [...document.querySelectorAll('#found h3')].map(x => x.textContent)"
  )
  assert any("i2t" in title for title in titles) and any("i2i" in title for title in titles)
  opened.back()
  keys(opened, "/", Keys.ESCAPE, "zebra")
  until(lambda: said(opened) == "No caption of the test set has these words.")
  assert opened.get_log("browser") == []


def test_a_result_becomes_the_query_with_the_models_own_neighbours(opened, trained):
  from xmr import data, inspect

  run = inspect.load(trained)
  split = data.load(run.config)["test"]
  image, text = run.embeddings(split)
  opened.execute_script("document.querySelector('button[data-caption=\"7\"]').click()")
  until(lambda: said(opened).startswith("Query: caption"))
  shown = opened.execute_script(
    "return [...document.querySelectorAll('#found ol.row')][0].querySelectorAll('button').length"
  )
  first = opened.execute_script(
    "return document.querySelector('#found ol.row button').dataset.image"
  )
  expected = study.neighbours(text[7:8], image, 10, kind="cosine", text_query=True)[1][0]
  assert shown == 10 and int(first) == expected[0]
  opened.execute_script("document.querySelector('#found ol.row button').click()")
  until(
    lambda: said(opened) == f"Query: image {split.image_names[expected[0]]}" or expected[0] == 0
  )


def test_dark_and_light_and_a_phone(browser, written):
  driver = browser(390, 844)
  driver.execute_cdp_cmd(
    "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
  )
  driver.get(written.as_uri())
  paper = "return getComputedStyle(document.body).backgroundColor"
  dark = driver.execute_script(paper)
  driver.execute_script("document.getElementById('theme').click()")
  light = driver.execute_script(paper)
  assert dark == "rgb(19, 23, 28)" and light == "rgb(255, 255, 255)"
  assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
  assert driver.execute_script("return document.documentElement.scrollHeight") < 10_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened, scheme):
  axe_core_python = pytest.importorskip("axe_core_python")
  script = (pathlib.Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
  opened.execute_script(
    f"document.documentElement.dataset.theme = '{scheme}'; location.hash = '#i2'"
  )
  opened.set_script_timeout(300)
  opened.execute_script(script)
  found = opened.execute_async_script("axe.run().then(arguments[0])")
  assert [(x["id"], x["help"], x["nodes"][0]["html"][:200]) for x in found["violations"]] == []
  assert len(found["passes"]) > 10


def test_thumbnails_keep_to_their_budget_and_the_page_says_so(
  test_split, trained, monkeypatch, tmp_path
):
  made, left = page.thumbnails(test_split, [3, 3, 1, *range(12)], folder="", budget=3000)
  assert 3 in made and sum(map(len, made.values())) <= 3000 and len(made) + left == 12 and left > 0
  monkeypatch.setattr(page, "LIMIT", 1)
  html = report.report(trained, out=tmp_path / "small.html", queries=1, limit=10).read_text()
  assert (
    "Thumbnails are limited by the size of this page: " in html
    and "among the first 2 images and their 10 captions" in html
  )
  assert re.search(r'id="thumbnails">\{\}</script>', html)


def test_a_gallery_of_100_000_searches_its_first_images():
  split = dataclasses.make_dataclass("S", ["image_of_text", "image_id"])(
    np.arange(500_000) // 5, np.arange(100_000)
  )
  images, captions = page.searchable(split)
  assert len(images) == 2_000 and len(captions) == 10_000 and captions[-1] == 9_999


def test_neighbours_leave_out_the_query_itself():
  x = np.eye(4, dtype=np.float32) + 0.1
  x[3] = x[2]
  _, found = study.neighbours(x, x, 10, kind="cosine", text_query=False, same=True)
  assert found.shape == (4, 3) and not (found == np.arange(4)[:, None]).any()
  assert found[2, 0] == 3 and found[3, 0] == 2


def test_hubs_and_lengths_by_hand():
  found = np.array([[0, 1], [0, 2], [0, 1]])
  hubs = study.hubs(found, 4, 2)
  assert hubs["items"] == [(0, 3), (1, 2)] and hubs["mean"] == 1.5 and hubs["never"] == 1
  groups = study.by_length(np.array([3, 3, 5, 9]), np.array([0, 20, 0, 5]), groups=2)
  assert [(g["from"], g["to"], g["count"], g["r1"], g["r10"], g["medr"]) for g in groups] == [
    (3, 3, 2, 50.0, 50.0, 11.0),
    (4, 9, 2, 50.0, 100.0, 3.5),
  ]
  assert sum(g["count"] for g in study.by_length(np.full(7, 4), np.arange(7))) == 7


def test_relevance_of_some_pairs_is_that_of_the_whole_matrix(test_split):
  from xmr.eval.relevance import rouge_l

  whole = rouge_l(test_split.texts, test_split.image_of_text)
  for (text, image), (value,) in study.Relevance(test_split)([2, 30], [0, 5, 11]).items():
    assert value == pytest.approx(whole[text, image], abs=1e-6)


def test_ticks_enclose_the_values_with_round_numbers():
  for low, high in ((0, 812), (3e-5, 1e-3), (5, 5), (-2, 7), (0, 0)):
    at = charts.ticks(low, high)
    assert at[0] <= low and at[-1] >= high - 1e-12 and 3 <= len(at) <= 7
  assert "no finite values" in charts.chart(
    "t", [("a", "line0", np.array([1]), np.array([np.nan]))]
  )


def test_a_loss_over_more_than_two_decades_gets_a_logarithmic_axis():
  drawn = charts.chart(
    "Training loss", [("loss", "line0", np.arange(3), np.array([5000.0, 60.0, 40.0]))]
  )
  labels = [text.split("<")[0] for text in drawn.split('text-anchor="end">')[1:]]
  assert labels == ["10", "100", "1000", "10k"]
  assert ">0<" in charts.chart(
    "Training loss", [("loss", "line0", np.arange(3), np.array([60.0, 0.0, 40.0]))]
  )


def test_runs_on_different_splits_are_refused(test_split):
  other = dataclasses.replace(test_split, texts=[*test_split.texts[:-1], "other"])
  with pytest.raises(
    UserError, match="a and b are scored on different splits: 12 images and 60 texts"
  ):
    study.same_split(test_split, other, names=("a", "b"))


@pytest.mark.parametrize(
  "arguments, expected",
  [
    (["--workdir=nowhere"], "nowhere is not the folder of a run"),
    ([], "--workdir is missing"),
    (["--workdri=x"], "unrecognized arguments: --workdri=x"),
    (["--workdir=x", "--queries=many"], "invalid int value"),
    (["--workdir=x", "--queries=-1"], "--queries is -1"),
  ],
)
def test_a_mistake_ends_with_one_line(arguments, expected, capsys):
  with pytest.raises(SystemExit) as stopped:
    report.main(["report", *arguments])
  error = capsys.readouterr().err.strip()
  assert (
    stopped.value.code == 2
    and error.startswith("xmr: error: ")
    and expected in error
    and "\n" not in error
  )


def test_help_imports_no_jax(command):
  code = (
    "import sys; from xmr.inspect import report; report.parser().format_help(); assert 'jax' "
    "not in sys.modules"
  )
  command("-c", code)


def test_a_run_scored_by_map_has_its_curves():
  steps = np.array([20, 40])
  metrics = {f"val/{name}": (steps, np.array([0.18, 0.2])) for name in ("map", "i2t/map")}
  assert [title for title, _ in charts.charts([("fgcmir", metrics)])] == ["Validation MAP"]
