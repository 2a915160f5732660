"""Engines: a pool of Ray actors, each with one vLLM, that answers prompts with any member's weights.

:mod:`.actor` runs in a Ray actor, with :mod:`.messages` and :mod:`.vllm_options`. All other modules run in the driver:
they place engines, hand out jobs (:mod:`.scheduler` decides, :mod:`.assignments` does it), watch for signs of life, and
replace dead engines (:mod:`.joining`). May import :mod:`esplug.vllm_worker`, :mod:`esplug.planning` and below.
"""

from esplug.engines.jobs import Job as Job
from esplug.engines.pool import EnginePool as EnginePool
