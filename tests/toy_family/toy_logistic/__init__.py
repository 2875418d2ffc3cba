"""A model family as another package offers it: logistic regression on smoothed intensities, voxel by voxel, in NumPy."""
