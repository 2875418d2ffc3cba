"""The napari plugin: a dock widget for one annotator.

`session` and `review` are the work of an annotator and a reviewer without Qt or napari, `drafts` keeps drawings over a
crash, `layers` shows a patch as napari layers, `widget` and its panels are the window. `rescueseg annotate` opens it.
"""
