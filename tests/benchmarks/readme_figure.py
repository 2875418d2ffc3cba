"""Draw the README's picture from a finished demo: image, truth, first and last generation, uncertainty, next patches.

python tests/benchmarks/readme_figure.py demo .readme/demo.png
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from rescueseg.campaign import Campaign
from rescueseg.campaign.stage_results import QUERY
from rescueseg.inference.maps import VolumeMaps
from rescueseg.volumes import open_image, open_truth


def main(url: str, out: str) -> None:
    """Draw the plane that holds most truth."""
    campaign = Campaign.open(url)
    volume = campaign.volumes.records()[0]
    truth = np.asarray(open_truth(campaign.volumes, volume.volume_id)[:])
    z = int(np.argmax((truth > 0).sum(axis=(1, 2))))
    image = np.asarray(open_image(campaign.volumes, volume.volume_id)[0, z])
    last = campaign.generations()[-1].number
    low, high = np.percentile(image, (0.5, 99.5))

    def prediction(generation: int) -> np.ndarray:
        probability = np.asarray(
            VolumeMaps(campaign.generation(generation), volume.volume_id).open("probability")[:, z]
        )
        return probability.argmax(axis=0)

    panels = [
        ("image", None),
        ("truth", truth[z] > 0),
        ("generation 0", prediction(0) > 0),
        (f"generation {last}", prediction(last) > 0),
    ]
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.3), layout="constrained")
    for axis, (title, mask) in zip(axes, panels, strict=False):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        if mask is not None:
            axis.imshow(np.ma.masked_equal(mask, 0), cmap="cool", vmin=0, vmax=2, alpha=0.6, interpolation="none")
        axis.set_title(title)
    entropy = np.asarray(
        VolumeMaps(campaign.generation(last), volume.volume_id).open("predictive_entropy")[z], dtype=np.float32
    )
    axes[4].imshow(entropy, cmap="cividis", vmin=0, vmax=np.log(2))
    axes[4].set_title("entropy, next patches")
    for patch in campaign.generation(last).require(QUERY).patches:
        (_, y, x), (_, height, width) = patch.box.offset_zyx, patch.box.shape_zyx
        axes[4].add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="#d55e00", linewidth=2))
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
