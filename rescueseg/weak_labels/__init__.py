"""A first mask per patch, so that nobody starts from nothing.

A method is one module that makes a `WeakLabeller` (`base.py`); `methods.py` lists them, `prefill.py` gives their masks to the
tickets of the queue.
"""
