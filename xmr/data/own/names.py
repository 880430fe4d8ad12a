"""Where the images of a folder are: what a source calls them against what lies there."""

import collections
import os
import pathlib
import stat
import unicodedata

from xmr.data.own.rows import ENDINGS, split_in_name
from xmr.errors import UserError

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
DEPTH = 3  # folders below the dataset's in which a source of captions is looked for


def _ours(folders, files):
  """Returns whether a folder is a run of ours, or a prepared set: its files are no captions."""
  return "checkpoints" in folders or any(".array_record" in file for file in files)


def _plain(name):
  """Returns a name without case; accents as one letter, which some systems write as two."""
  return unicodedata.normalize("NFC", name).lower()


class Folder:
  """All files of a dataset's folder, found once.

  Attributes:
    root: str, the folder.
    sources: [path below root] of files that are no images, at most DEPTH folders deep, sorted.
  """

  def __init__(self, root):
    self.root, self.sources = str(root), []
    self._paths, self._folders, self._lower = set(), set(), {}
    self._by_base = collections.defaultdict(list)
    self._by_stem = collections.defaultdict(list)
    self._homes = [os.path.realpath(root)]
    for folder in ("", *self._links()):
      self._walk(folder)
    self.sources.sort(key=lambda path: (path.count("/"), path))

  def _links(self):
    """Returns the links to folders that lie in the folder itself: `images` may be one."""
    paths = (os.path.join(self.root, name) for name in sorted(os.listdir(self.root)))
    links = [path for path in paths if os.path.islink(path) and os.path.isdir(path)]
    self._homes += map(os.path.realpath, links)
    return map(os.path.basename, links)

  def _walk(self, start):
    for path, folders, files in os.walk(os.path.join(self.root, start)):
      folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
      if _ours(folders, files):
        folders[:] = []
        continue
      below = os.path.relpath(path, self.root)
      below = "" if below == "." else below + "/"
      for file in sorted(files):
        if file.startswith("."):
          continue
        name = below + file
        stem, ending = os.path.splitext(name)
        if ending.lower() in ENDINGS:
          self._paths.add(name)
          self._folders.add(_plain(os.path.basename(os.path.dirname(name))))
          self._lower.setdefault(_plain(name), name)
          self._by_base[_plain(file)].append(name)
          self._by_stem[_plain(os.path.basename(stem))].append(name)
        elif name.count("/") <= DEPTH:
          self.sources.append(name)

  def find(self, name, *, base="", where=""):
    """Returns the path below the folder of the image that a source calls `name`, or None.

    Tried in turn: the name below the source's own folder, below the dataset's and below images/,
    then in any case of letters; then the file whose path ends as the name does, as sources are
    written on other machines; then the same with another of JPEG's endings, or one where the name
    has none.

    Args:
      name: as in the source.  base: the source's folder below the dataset's.  where: for errors.
    Raises:
      UserError: a relative name leads out of the folder, or it fits several files.
    """
    name = name.replace("\\", "/")
    absolute = name.startswith("/") or name[1:3] == ":/"
    if "\0" in name or not pathlib.PurePosixPath(name).name:
      raise UserError(f"{where}: {name!r:.60} is the name of no file")
    parts = [part for part in _plain(name).split("/") if part not in ("", ".", "..")]
    if not parts:
      raise UserError(f"{where}: {name!r:.60} is the name of no file")
    if not absolute:
      tries = [os.path.normpath(os.path.join(at, name)) for at in (base, "", "images")]
      tries = [path for path in tries if path.split("/")[0] != ".."]
      if not tries:
        raise UserError(f"{where}: image {name!r:.90}; expected a name that stays in {self.root}")
      for path in tries:
        if path in self._paths:
          return path
      for path in tries:
        if _plain(path) in self._lower:
          return self._lower[_plain(path)]
      for path in tries:
        # An image without an ending, or with one that is not known: its bytes will tell.
        if os.path.isfile(os.path.join(self.root, path)):
          return path
    stem, ending = os.path.splitext(parts[-1])
    found = self._by_base.get(parts[-1])
    if not found and ending in _JPEG:
      found = [path for path in self._by_stem.get(stem, ()) if _plain(path).endswith(_JPEG)]
    elif not found and ending not in ENDINGS:
      found = self._by_stem.get(parts[-1])
    found = [path for path in found or () if self._may_be(path, parts[:-1])]
    return self._longest_end(found, parts[:-1], name, where) if found else None

  def _may_be(self, path, folders):
    """Returns whether a file of the right name, in another folder than the source says, may be
    meant: not where the folder that it says is there, or speaks of another split.
    """
    mine = _plain(path).split("/")[:-1]
    if not folders or mine[-len(folders) :] == folders:
      return True
    if not mine or mine[-1] != folders[-1]:
      if folders[-1] in self._folders:
        return False
    splits = [{split_in_name(name) for name in names} - {None} for names in (mine, folders)]
    return not all(splits) or splits[0] == splits[1]

  def _longest_end(self, paths, folders, name, where):
    """Returns the path that shares the most folders, counted from the file, with a name."""

    def shared(path):
      mine = _plain(path).split("/")[:-1]
      pairs = zip(reversed(mine), reversed(folders), strict=False)
      return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(folders)))

    most = max(map(shared, paths))
    best = [path for path in paths if shared(path) == most]
    if len(best) > 1:
      raise UserError(
        f"{where}: image {name} may be {best[0]} or {best[1]}; expected one file of that name, or "
        "its folder beside it"
      )
    return best[0]

  def status(self, path):
    """Returns (bytes, modification time in ns) of an image, or None where its link leads nowhere.

    Raises:
      UserError: no plain file, an empty one, or a link that leads out of the folder.
    """
    full = os.path.join(self.root, path)
    try:
      found = os.stat(full)
    except OSError:
      return None
    if os.path.islink(full) or path not in self._paths:
      real = os.path.realpath(full)
      if not any(os.path.commonpath([real, home]) == home for home in self._homes):
        raise UserError(
          f"image {path} in {self.root} is a link to {real}; expected a file inside {self.root}"
        )
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
      raise UserError(f"image {path} in {self.root} is no file, or empty; expected an image")
    return found.st_size, found.st_mtime_ns
