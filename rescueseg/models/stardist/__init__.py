"""StarDist in 3D: star-convex polyhedra (Weigert et al. 2020, doi:10.1109/WACV45572.2020.9093435).

The targets, the suppression and the drawing of polyhedra are StarDist's. The network is this project's U-Net in place of
StarDist's Keras network: so a training needs no TensorFlow, goes on where it was killed, uses a GPU as the others do, and its
predictions have dropout samples and symmetries. Beside the polyhedra it learns the classes of the voxels, so that every map
and every query strategy works as for the other families. No training starts from weights of StarDist's own models: those are
another network, which labels waiting patches (`published.py`).
"""
