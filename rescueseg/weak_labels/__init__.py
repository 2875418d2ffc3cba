"""Phase 2A: a first mask per patch, so that nobody starts from nothing.

A method is one module that makes a `WeakLabeller` (`base.py`); `choice.py` lists them, `run.py` takes them to the queue.
"""

from __future__ import annotations

from rescueseg.weak_labels.base import WeakLabel, WeakLabeller, label_box
from rescueseg.weak_labels.threshold import rough_mask

__all__ = ["WeakLabel", "WeakLabeller", "label_box", "rough_mask"]
