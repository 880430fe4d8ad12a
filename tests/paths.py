"""Where the repository, its golden files and the real data lie."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
# Photographs, captions and features belong to their owners and are not part of the repository:
# docs/contributing.md tells where each comes from and how the folder is laid out.
SHARED = pathlib.Path(os.environ.get("XMR_SHARED", ROOT.parent / "shared"))
