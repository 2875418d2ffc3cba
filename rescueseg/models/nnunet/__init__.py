"""nnU-Net v2 (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) as a trainer.

A training runs in a process of its own, so that nnU-Net's environment variables, threads and random state belong to no
other campaign. `trainer` starts and watches that process and needs neither torch nor nnU-Net; `worker` is the process;
`predictor` loads what it exported, without nnU-Net and without unpickling.
"""
