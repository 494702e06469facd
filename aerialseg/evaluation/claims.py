"""What a quoted pair of IoU and accuracy says about the ground it was taken on.

With tp, fp, fn and tn as shares of all pixels, accuracy leaves fp + fn = 1 - accuracy, and IoU then fixes
tp = IoU (fp + fn) / (1 - IoU). The true building share lies between tp and tp + fp + fn. Where it does not fit the
truth, the pair was taken on other pixels: with empty patches left out, for example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

UNLIKE = 1.5
"""A share this many times outside the implied range is unlike it."""


def implied_building_share(iou: float, accuracy: float) -> tuple[float, float]:
    """Return the lowest and highest share of building that a pair of scores allows; raises ValueError for no pair."""
    if not (0 <= iou < 1 and 0 <= accuracy <= 1):
        raise ValueError(f"IoU {iou} and accuracy {accuracy} are no pair of scores")
    wrong = 1 - accuracy
    found = iou * wrong / (1 - iou)
    return found, min(1.0, found + wrong)


def compare_claim(source: str, scores: Mapping[str, object], truth_share: float) -> list[str]:
    """Return a warning when the IoU and accuracy in `scores` were taken on ground unlike the truth's."""
    iou, accuracy = scores.get("val_iou"), scores.get("val_accuracy")
    if not isinstance(iou, float) or not isinstance(accuracy, float) or not 0 <= iou < 1 or not 0 <= accuracy <= 1:
        return []
    low, high = implied_building_share(iou, accuracy)
    if truth_share != truth_share or low / UNLIKE <= truth_share <= high * UNLIKE:
        return []
    return [
        f"{one_line(source)}: its validation IoU {iou:.3f} and accuracy {accuracy:.3f} imply {low:.1%} to {high:.1%}"
        f" building, the truth here has {truth_share:.1%}: those scores were taken on other ground and do not compare"
    ]
