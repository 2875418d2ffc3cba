"""Makes the models of two folders and what StarDist itself says by them; needs TensorFlow: pip install tensorflow stardist.

Run as ``python make_stardist_models.py FOLDER``, which gets `stardist_balls` and `stardist_random`; it takes minutes. The
result is not the same to the last bit on another machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from stardist import Rays_GoldenSpiral
from stardist.models import Config3D, StarDist3D

SPACING = (0.25, 0.1, 0.1)


def scene(rng: np.random.Generator, shape: tuple[int, int, int], balls: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of balls with a little noise, and their numbers."""
    axes = [(np.arange(n) + 0.5) * s for n, s in zip(shape, SPACING, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    numbers = np.zeros(shape, np.int32)
    for number in range(1, balls + 1):
        centre = [rng.uniform(0, a[-1]) for a in axes]
        ball = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < rng.uniform(0.5, 0.75) ** 2
        if not numbers[ball].any():
            numbers[ball] = number
    return ((numbers > 0) * 2.0 + rng.normal(0, 0.15, shape)).astype(np.float32), numbers


def main(folder: Path) -> None:
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    scenes = [scene(rng, (24, 64, 64), 30) for _ in range(10)]
    images, numbers = [normalize(image, 1, 99.8) for image, _ in scenes], [n for _, n in scenes]
    config = Config3D(
        rays=Rays_GoldenSpiral(24, anisotropy=(2.5, 1.0, 1.0)), anisotropy=(2.5, 1.0, 1.0), grid=(1, 2, 2),
        unet_n_depth=1, unet_n_filter_base=8, net_conv_after_unet=24, train_patch_size=(16, 48, 48), train_batch_size=2,
        train_learning_rate=2e-3, train_loss_weights=(2, 0.1), train_epochs=60, train_steps_per_epoch=50, train_tensorboard=False,
    )  # fmt: skip
    model = StarDist3D(config, name=folder.name, basedir=str(folder.parent))
    model.train(images[:8], numbers[:8], validation_data=(images[8:], numbers[8:]))
    for other in ("weights_last.h5", "weights_now.h5"):
        (folder / other).unlink(missing_ok=True)
    model.keras_model.save_weights(str(folder / "weights_best.h5"))
    (folder / "thresholds.json").write_text(json.dumps({"prob": 0.5, "nms": 0.3}))
    model.thresholds = {"prob": 0.5, "nms": 0.3}
    image = normalize(scene(np.random.default_rng(7), (8, 24, 32), 4)[0], 1, 99.8)
    probability, lengths = model.predict(image)
    found, _ = model.predict_instances(image)
    np.savez_compressed(
        folder / "expected.npz", image=image, probability=probability, lengths=lengths, found=found.astype(np.uint16)
    )


def random(folder: Path) -> None:
    """Make a model of random weights and of another shape, and what it says of an image."""
    tf.keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    config = Config3D(
        rays=Rays_GoldenSpiral(16), grid=(2, 4, 1), unet_n_depth=2, unet_n_filter_base=2, unet_n_conv_per_depth=3,
        unet_pool=(1, 2, 2), unet_kernel_size=(1, 3, 3), unet_last_activation="elu", net_conv_after_unet=0,
    )  # fmt: skip
    model = StarDist3D(config, name=folder.name, basedir=str(folder.parent))
    for layer in model.keras_model.layers:
        if layer.get_weights():
            layer.set_weights(
                [rng.normal(0, 1.6 * np.prod(w.shape[:-1]) ** -0.5, w.shape) for w in layer.get_weights()]
            )
    model.keras_model.save_weights(str(folder / "weights_best.h5"))
    image = rng.normal(size=(6, 40, 20)).astype(np.float32)
    probability, lengths = model.predict(image)
    np.savez_compressed(folder / "expected.npz", image=image, probability=probability, lengths=lengths)


if __name__ == "__main__":
    main(Path(sys.argv[1], "stardist_balls").resolve())
    random(Path(sys.argv[1], "stardist_random").resolve())
