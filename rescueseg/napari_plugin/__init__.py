"""The napari plugin: one annotator's desk as a dock widget.

`session` and `review` hold what happens without Qt or napari, `drafts` what survives a crash, `layers` a patch as napari
layers, `widget` and its panels the window. `command` is `rescueseg annotate`; importing it does not import napari.
"""
