"""A strided U-Net of MONAI blocks, planned from the physics of the data."""
