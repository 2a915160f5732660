"""Topics: the task's own prompts, for trying a judge before there are data."""

from typing import Any

_TRAIN = """\
a hotel|a bakery|a train journey|a mobile phone|a museum|a pair of shoes|a bicycle|a swimming pool|
a novel|a film|a restaurant|a laptop|a hairdresser|a concert|a campsite|a ferry|a kettle|a dentist|
a garden|a toy shop|a bus ride|a zoo|a raincoat|a library|a gym|a supermarket|a violin lesson|
a chair|a radio|a market|a beach|a taxi ride|a cake|a school|a washing machine|a lamp|a theatre|
a fish shop|a watch|a tent|a painting class|a flight|a sofa|a cheese|a bridge|a pen|a clock|
a blanket"""
_EVAL = """\
a cafe|a camera|a castle|a coat|a cooking class|a farm|a football match|a guest house|a hospital|
a keyboard|a magazine|a mattress|a mountain hut|a park|a pizza|a poem|a printer|a soup|a speech|
a suitcase|a tram ride|a wedding|a window cleaner|a writing desk"""


def rows(split: str) -> list[dict[str, Any]]:
    """Return the rows of a split, ``train`` or ``eval``; no topic is in both."""
    topics = (_TRAIN if split == "train" else _EVAL).split("|")
    return [{"prompt": f"Write one sentence about {topic.strip()}."} for topic in topics]
