"""C7: with the temporal module the image model adapts to video."""

from __future__ import annotations

from analysis.claims.claim import Claim, Experiments


def c7(found: Experiments) -> Claim:
    """With the temporal module the image model adapts to video: there is no video here yet."""
    return Claim(
        "C7",
        "With the temporal module the image model adapts to video; it beats models with video pre-training.",
        "not tested",
        ("There is no experiment with video yet.",),
        "None yet: it comes with video.",
        found["table1"].scale,
    )
