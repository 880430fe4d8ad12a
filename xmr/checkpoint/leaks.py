"""Keeps the saves of a long run from filling the memory.

tensorstore (0.1.79 to 0.1.86, the newest) holds every string, number and list of the JSON that it
returns to Python for ever. Orbax asks it for JSON with each item and each array of a save.
"""

import contextlib

import tensorstore


@contextlib.contextmanager
def without_json():
  """Answers in Python what orbax asks tensorstore about JSON while it saves: the place of a file,
  and counts of bytes that only logs show.
  """
  specs, count = tensorstore.KvStore.Spec, tensorstore.experimental_collect_matching_metrics
  # As the class holds it: what `specs.to_json` gives takes no self once it is put back.
  to_json = vars(specs)["to_json"]

  def place(self, include_defaults=False):
    if self.url.startswith("file://"):
      return {"driver": "file", "path": self.path}
    return to_json(self, include_defaults)

  specs.to_json = place
  tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []
  try:
    yield
  finally:
    specs.to_json, tensorstore.experimental_collect_matching_metrics = to_json, count
