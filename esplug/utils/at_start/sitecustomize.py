"""Start of every Python process that an engine starts: hides what its torch cannot load.

Python imports the first module of this name on its path when it starts. This one then runs the next.
"""

import contextlib
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from itertools import dropwhile
from pathlib import Path

with contextlib.suppress(ImportError):  # the process may be another environment's Python
    from esplug.utils.torch_builds import hide_cuda_builds

    hide_cuda_builds()

# Only on the path after this one: an earlier one, of another copy of esplug, has run this one.
_after = dropwhile(str(Path(__file__).parent).__ne__, sys.path)
_next = PathFinder.find_spec("sitecustomize", [*_after][1:])
if _next and _next.loader:
    _next.loader.exec_module(module_from_spec(_next))
