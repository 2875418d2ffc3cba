"""Fingerprint, plan and preprocessing by nnU-Net's own API, in the worker's process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnunetv2
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rescueseg.config import TrainingConfig
from rescueseg.errors import TrainingError
from rescueseg.geometry import zyx
from rescueseg.models.inference_window import plan_inference_window
from rescueseg.models.nnunet.plan import (
    ARCHITECTURES,
    DATASET,
    PLANNERS,
    PROFILES,
    Job,
    NnUNetNetwork,
    NnUNetPlan,
    dropout,
    inference_scale,
    training_window,
    warm_start_plan,
)
from rescueseg.models.nnunet.settings import NnUNetSettings
from rescueseg.models.survey import Survey

PLANS = "rescueseg"
"""Name of the plans file."""
_SAMPLES = 100_000
"""Voxels whose intensities enter the fingerprint; without nnU-Net's normalisation nothing depends on them."""


def plan_dataset(
    job: Job, config: TrainingConfig, earlier: NnUNetPlan | None, preprocessed: Path
) -> tuple[NnUNetPlan, str]:
    """Take the dataset's fingerprint, plan, adapt the plans to the profile and settings, and preprocess.

    Parameters
    ----------
    job : Job
        The training; its dataset is written.
    config : TrainingConfig
        Profile, window, features, dropout, planner and configuration.
    earlier : NnUNetPlan, optional
        Plan of the model to start from.
    preprocessed : Path
        nnU-Net's folder of the preprocessed dataset.

    Returns
    -------
    plan : NnUNetPlan
        As the adapted plans file has it.
    reason : str
        Why the training does not start from the earlier model; empty where it does.

    Raises
    ------
    TrainingError
        If nnU-Net plans no such configuration for the dataset.
    """
    with _pools_of_threads():
        extractor = fingerprint_extractor.DatasetFingerprintExtractor(DATASET, config.threads)
        extractor.num_foreground_voxels_for_intensitystats = _SAMPLES
        extractor.run(overwrite_existing=True)
        plans = _planner(config)(DATASET, plans_name=PLANS).plan_experiment()
        name = NnUNetSettings.of(config).configuration
        if name not in plans["configurations"]:
            raise TrainingError(
                f"nnU-Net plans no configuration '{name}' for this dataset, only {', '.join(plans['configurations'])}",
                where="training.nnunet.configuration",
                todo="Leave it at 3d_fullres: the patches are too small for another resolution",
            )
        configuration = plans["configurations"][name]
        survey = Survey(job.in_channels, job.spacing_um_zyx, job.volume_zyx, job.field_zyx)
        plan, reason = _adapt(job, config, survey, plans, configuration), ""
        if earlier is not None:
            plan, reason = warm_start_plan(earlier, plan, config, survey)
        plans["transpose_forward"] = list(plan.axes)
        plans["transpose_backward"] = [plan.axes.index(axis) for axis in range(3)]
        configuration |= {
            "patch_size": [plan.window_zyx[axis] for axis in plan.axes],
            "batch_size": plan.batch_size,
            "spacing": [plan.spacing_um_zyx[axis] for axis in plan.axes],
            "architecture": {
                "network_class_name": ARCHITECTURES[plan.network.architecture],
                "arch_kwargs": plan.network.arguments(),
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        }
        (preprocessed / f"{PLANS}.json").write_text(json.dumps(plans, indent=1))
        manager = PlansManager(plans).get_configuration(name)
        manager.preprocessor_class(verbose=False).run(DATASET, name, PLANS, num_processes=config.threads)
    return plan, reason


def _planner(config: TrainingConfig) -> Any:
    return recursive_find_python_class(
        str(Path(nnunetv2.__path__[0], "experiment_planning")),
        PLANNERS[NnUNetSettings.of(config).planner],
        current_module="nnunetv2.experiment_planning",
    )


def _adapt(
    job: Job, config: TrainingConfig, survey: Survey, plans: dict[str, Any], configuration: dict[str, Any]
) -> NnUNetPlan:
    """Return nnU-Net's plan with the window, features and dropout of profile and settings."""
    profile, settings = PROFILES[config.profile], NnUNetSettings.of(config)
    axes = zyx(plans["transpose_forward"])
    network = NnUNetNetwork.read(
        configuration["architecture"], job.in_channels, job.snapshot.n_classes, dropout=dropout(config)
    )
    patch = [int(n) for n in configuration["patch_size"]]
    spacing = [float(s) for s in configuration["spacing"]]
    window = training_window(config, survey)
    if window is not None:
        _, strides, kernels, _, _ = get_pool_and_conv_props(spacing, [window[axis] for axis in axes], 4, 999999)
        patch = [window[axis] for axis in axes]
        network = network.with_levels(strides, kernels)
    network = network.cut(settings.channels or profile.channels, profile.strided)
    patch = [-(-n // m) * m for n, m in zip(patch, network.total_stride, strict=True)]
    plan = NnUNetPlan(
        network=network,
        profile=config.profile,
        planner=settings.planner,
        configuration=settings.configuration,
        spacing_um_zyx=(spacing[axes.index(0)], spacing[axes.index(1)], spacing[axes.index(2)]),
        axes=axes,
        window_zyx=zyx(patch[axes.index(axis)] for axis in range(3)),
        inference_window_zyx=(1, 1, 1),
        batch_size=config.batch_size or int(configuration["batch_size"]),
        iterations=config.iterations or profile.iterations,
        members=config.members,
    )
    larger = plan_inference_window(survey, plan.window_zyx, plan.total_stride_zyx, inference_scale(config))
    return plan.model_copy(update={"inference_window_zyx": larger})


@contextmanager
def _pools_of_threads() -> Iterator[None]:
    """Let nnU-Net work in threads: each process of its pools would import torch again, for longer than the work takes."""
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    modules = (fingerprint_extractor, default_preprocessor)
    before = [module.multiprocessing for module in modules]
    for module in modules:
        module.multiprocessing = threads
    try:
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            module.multiprocessing = original
