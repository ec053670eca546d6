"""How much of what captions say is true of the drawn scenes, in the miniworld (as CHAIR asks it of COCO).

Whoever changes a score raises the number ``scene_truth`` in `evlgen.runs.behaviour.SCORERS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from evlgen.evaluation.java import one_line
from evlgen.miniworld import Scene, check_caption


def scene_truth(captions: Iterable[tuple[str, Scene]]) -> dict[str, float]:
    """Percent of the objects named that are there, and of the colours named with them that are right.

    Args:
        captions: each with the scene of its image.
    """
    checks = [check_caption(one_line(text), scene) for text, scene in captions]
    objects, colours = sum(c.named for c in checks), sum(c.colour_named for c in checks)
    return {
        "objects_right": 100 * sum(c.shape_right for c in checks) / max(1, objects),
        "colours_right": 100 * sum(c.colour_right for c in checks) / max(1, colours),
    }
