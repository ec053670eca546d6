"""How much of what captions say is true of the drawn scenes, in the miniworld (as CHAIR asks it of COCO).

Whoever changes a score raises the number ``scene_truth`` in `evlgen.runs.behaviour.SCORERS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from evlgen import miniworld
from evlgen.evaluation.java import one_line


def scene_truth(captions: Mapping[int, str], pool: str) -> dict[str, float]:
    """Percent of the objects named that are there, and of the colours named with them that are right.

    Args:
        captions: index of the image in the miniworld pool ``pool`` -> caption.
    """
    images = miniworld.pool(pool)
    checks = [
        miniworld.check_caption(one_line(text), images.scene(index)) for index, text in captions.items()
    ]
    objects, colours = sum(c.named for c in checks), sum(c.colour_named for c in checks)
    return {
        "objects_right": 100 * sum(c.shape_right for c in checks) / max(1, objects),
        "colours_right": 100 * sum(c.colour_right for c in checks) / max(1, colours),
    }
