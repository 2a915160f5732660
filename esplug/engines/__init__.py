"""The engines: a pool of Ray actors, each with one vLLM, that answers prompts with any member's weights.

:mod:`.actor` runs in a Ray actor; all other modules run in the driver: they place engines, hand out members, watch for
signs of life, and replace dead engines. May import :mod:`esplug.vllm_worker`, :mod:`esplug.planning` and below.
"""

from esplug.engines.pool import EnginePool as EnginePool
from esplug.engines.pool import Job as Job
