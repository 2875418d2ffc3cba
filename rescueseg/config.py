"""The settings of a campaign, as the campaign file states them: checked by pydantic, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

from cronsim import CronSim, CronSimError
from pydantic import ConfigDict, Field, JsonValue, PositiveFloat, field_validator, model_validator

from rescueseg.sections import Section, check_section

ANNOTATION_PORT = 8642
"""Default port of the annotation server."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
ZYXField = tuple[Positive, Positive, Positive]


class ConsistencyConfig(Section):
    """What becomes of volumes that differ; see `rescueseg check`."""

    different_spacing: Literal["resample", "refuse"] = "resample"
    """Volumes of another spacing than their domain's are resampled to it, or refused."""
    checked_spacing: tuple[str, ...] = ()
    """Ids of volumes whose spacing a person has verified: `check` never doubts it."""


class TriageConfig(Section):
    """Thresholds of the decision tree, in the order of its questions; see `rescueseg.triage`."""

    snr: Annotated[
        float,
        Field(
            gt=0,
            description="Below 3, a structure that fills a fifth of the view leaves no valley in the histogram: the sum of "
            "the two normal distributions has a single peak (Schilling et al. 2002, doi:10.1198/00031300265).",
        ),
    ] = 3.0
    slenderness: Annotated[
        Fraction,
        Field(description="Balls have 0, tubes and sheets 1; cells that press against each other reach 0.5 to 0.7."),
    ] = 0.6
    length: Annotated[
        float,
        Field(
            gt=0,
            description="Cells and organelles are at most some 25 times as long as thick (a long mitochondrion: 10 µm by "
            "0.4 µm); fibres, vessels and sheets are longer.",
        ),
    ] = 25.0
    connected: Annotated[
        Fraction,
        Field(
            description="One object that leaves the patch, holds four fifths of the structure and is seen along more than "
            "half the length of a long mitochondrion is a network, whatever the patch cuts."
        ),
    ] = 0.8
    texture: Annotated[
        float,
        Field(
            gt=0,
            description="From a quarter on, half the contrast lies within two standard deviations of the background: "
            "look-alikes are as common as a structure that fills 2 % of the volume.",
        ),
    ] = 0.25
    puncta: Annotated[
        Fraction,
        Field(
            description="Of fewer than 27 voxels no shape is measured; where they hold half of the structure, it has none."
        ),
    ] = 0.5
    star_convexity: Annotated[
        Fraction, Field(description="An object that rays describe at an overlap of 0.75 can still be found at AP75.")
    ] = 0.75
    sphericity: Annotated[Fraction, Field(description="A rod eight times as long as thick has 0.62.")] = 0.6


class HoldoutConfig(Section):
    """Boxes frozen before the first query: `validation` chooses, `test` only reports."""

    fraction: Annotated[float, Field(gt=0.0, le=0.6)] = 0.3
    """Share of the voxels that both parts may take together, their guard bands not counted."""
    validation_boxes: Positive = 8
    """Boxes that choose: champion, stopping, the threshold to beat."""
    test_boxes: Positive = 8
    """Boxes that are only ever reported."""
    first_boxes: Positive = 4
    """Boxes of each part that people annotate before generation 0; each generation then asks for two more of each part, until
    there are as many as above. Boxes whose truth came with the volume all count from the start."""
    box_zyx: ZYXField | None = None
    """Shape of a holdout box in voxels; about isotropic in micrometre when omitted."""
    guard_zyx: tuple[NotNegative, NotNegative, NotNegative] | None = None
    """Guard band in voxels around each holdout box; the training context fits in it."""
    guard_um: PositiveFloat | None = None
    """The same as a length in micrometre, in place of `guard_zyx`; about an object's diameter where both are omitted."""
    volumes: tuple[str, ...] = ()
    """Ids of volumes held out whole: the boxes are drawn in them alone, and nothing that they show is trained on."""

    @model_validator(mode="after")
    def _one_guard(self) -> Self:
        if self.guard_zyx is not None and self.guard_um is not None:
            raise ValueError("guard_zyx and guard_um say the same twice: leave one out")
        return self


class SamplingConfig(Section):
    """The starting budget and the patches that are queried."""

    patch_zyx: ZYXField | None = None
    """Patch shape in voxels; about isotropic in micrometre when omitted."""
    starting_patches: Positive = 4
    """Patches annotated before generation 0."""
    query_patches: Positive = 4
    """Patches queried by each generation."""


class AnnotationConfig(Section):
    """What happens between a lease and an accepted annotation."""

    lease_minutes: Annotated[float, Field(gt=0)] = 120.0
    """How long a patch stays with the annotator who took it."""
    review: bool = False
    """With review, a submitted annotation waits for a reviewer; without, it is accepted at once."""
    labels: Literal["semantic", "instance"] = "semantic"
    """Classes, or numbered objects of a single class."""
    return_hours: Annotated[float, Field(ge=0.0)] = 24.0
    """How long a patch that a reviewer sent back is kept for who annotated it."""
    idle_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Longest gap between two signs of life of a tool that counts as work."""
    double_fraction: Fraction = 0.0
    """Share of the pool patches that two people annotate, neither seeing the other's labels."""
    agreement_dice: Fraction = 0.8
    """Two annotators who agree less than this go to a reviewer; see `rescueseg.annotation.pairs`."""
    consensus: Literal["pick", "staple"] = "pick"
    """Of two who agree: the more complete version as it is, or a consensus of both by STAPLE."""
    context: Annotated[float, Field(ge=0.0, le=2.0)] = 0.5
    """How much of the surroundings is shown with a patch: a fraction of its side on every side."""
    postprocessing: Literal["auto", "none", "specks", "filled", "connected"] = "auto"
    """How the first masks of queried patches are cleaned; the triage's route decides when `auto`, nothing without one."""


class TrainingConfig(Section):
    """How a generation trains: what the loop and every model family read.

    What is one family's own stands in a table of its name, such as ``[training.unet]``. It is kept here as it is; the
    family checks it, see `rescueseg.models.family.FamilySettings`.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, JsonValue]] = Field(init=False)

    trainer: str = "auto"
    """Model family; the triage's route decides when `auto`, a MONAI U-Net without one."""
    profile: Literal["cpu", "gpu"] = "cpu"
    """Defaults for the machine that trains."""
    iterations: Positive | None = None
    """Optimiser steps; the profile's default when omitted."""
    batch_size: Positive | None = None
    """Windows per step; the profile's default when omitted."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak of the schedule, a short warm-up and a cosine to zero; the trainer's default when omitted."""
    spacing_um_zyx: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Spacing that volumes are resampled to; coarser than theirs shows large structures whole. Theirs when omitted."""
    window_zyx: ZYXField | None = None
    """Training window in voxels; chosen from spacing and memory when omitted."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of channels dropped, in training and by every Monte-Carlo sample: of the U-Net's last stages, of every layer
    of nnU-Net; the trainer's default when omitted."""
    members: Positive = 1
    """Networks trained from as many seeds and averaged: an ensemble, at as many times the cost."""
    checkpoint_every: Positive = 50
    """Steps between checkpoints: what a killed training loses at most."""
    threads: Positive = 2
    """CPU threads of a training."""
    gpus: Positive = 1
    """GPUs of one training."""
    warm_start: bool = False
    """Start from the previous generation's weights."""

    @property
    def families(self) -> Mapping[str, Mapping[str, JsonValue]]:
        """The tables of model families, by family, as they were written."""
        return self.model_extra or {}

    def shared(self) -> dict[str, Any]:
        """Return the settings that every family reads, JSON-ready: neither the trainer's name nor a family's table."""
        return self.model_dump(mode="json", include=set(type(self).model_fields) - {"trainer"})


class InferenceConfig(Section):
    """How whole volumes are predicted."""

    mc_samples: Positive = 3
    """Monte-Carlo dropout samples per symmetry."""
    tta_symmetries: Positive = 2
    """Test-time augmentations: the identity and up to this many minus one flips that the spacing allows."""
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    """Overlap of neighbouring windows as a fraction of the window."""
    window_zyx: ZYXField | None = None
    """Inference window in voxels; the one that the model was planned with when omitted."""
    block_voxels: Positive = 8_000_000
    """Largest block one Dask task writes; bounds the memory of a worker."""
    map_dtype: Literal["float16", "float32"] = "float16"
    forward: Literal["auto", "eager", "channels_last", "compiled"] = "auto"
    """How networks are computed: `rescueseg.models.forward` has the ways, and `auto` is the one that takes least here."""


class QueryConfig(Section):
    """How the next patches are chosen."""

    strategy: str = "auto"
    """One of `rescueseg.active_learning.strategies.STRATEGIES` (docs/queries.md); the triage's route decides when `auto`, `clasp_entropy` without one."""


class StoppingConfig(Section):
    """When enough is enough."""

    max_generations: Positive = 10
    """Generations after which the campaign stops asking; the noise of `clasp_entropy` fades over as many."""
    max_annotated_patches: Positive | None = None
    """Annotated patches after which it stops asking; no limit when omitted."""
    patience: Positive = 3
    """Generations in a row, the last included, that must say that another batch is not worth it before it stops asking; the
    first that can is the fifth."""
    min_gain: Annotated[float, Field(ge=0.0)] = 0.005
    """Smallest gain in validation Dice for which another batch is worth it: it stops when the trend, with 95 % certainty,
    promises less from as many patches as the last batch had. 0 never stops."""


class TriggerConfig(Section):
    """What starts a generation in a served campaign."""

    accepted_patches: Positive = 4
    """Accepted patches since the last generation that make the next one due."""
    cron: str = "0 3 * * *"
    """When to look whether a generation is due, beside the event."""
    timezone: str = "UTC"
    """Of the schedule."""

    @field_validator("cron")
    @classmethod
    def _cron_is_valid(cls, value: str) -> str:
        try:
            CronSim(value, datetime.now())
        except CronSimError as error:
            raise ValueError(f"'{value}' is no cron schedule ({error}); an example: 0 3 * * *") from error
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone_is_known(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"'{value}' is no time zone; examples: UTC, Europe/Berlin")
        return value


class ClusterConfig(Section):
    """Where blocks are computed."""

    kind: Literal["local", "address", "cuda", "slurm"] = "local"
    """Processes here, a scheduler that runs already, a worker per GPU, or Slurm jobs."""
    workers: Positive = 2
    """Worker processes; of Slurm, jobs; of cuda, one per GPU at most."""
    threads_per_worker: Positive = 1
    """Threads times workers should not exceed the cores."""
    address: str = ""
    """Of the scheduler, such as tls://scheduler:8786; tcp:// on this machine only."""
    tls_folder: str = ""
    """Folder of ca.pem, cert.pem and key.pem, which a tls:// address needs; see `rescueseg.services.dask_credentials`."""
    queue: str = ""
    """Slurm partition."""
    account: str = ""
    """Who pays for a Slurm job, where a cluster wants to know."""
    gpus: NotNegative = 0
    """GPUs that each Slurm job asks for (`--gres=gpu:1`); a worker computes on one."""
    directives: tuple[str, ...] = ()
    """What else a Slurm job asks for, such as --constraint=a100 or --qos=short; one #SBATCH line each."""
    memory: str = "8GiB"
    """Memory of one worker (local, cuda and slurm)."""
    walltime: str = "04:00:00"
    """Longest time of a Slurm job."""

    @field_validator("directives")
    @classmethod
    def _directives_are_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for directive in value:
            if not directive.startswith("-") or not directive.isprintable():
                raise ValueError(f"'{directive}' is no option of sbatch; an example: --constraint=a100")
        return value

    @model_validator(mode="after")
    def _gpus_once(self) -> Self:
        other = next((d for d in self.directives if d.startswith(("--gres", "--gpus", "-G"))), None)
        if self.gpus and other is not None:
            raise ValueError(f"gpus and '{other}' say the same twice: leave one out")
        return self


class ServerConfig(Section):
    """The annotation server; see `rescueseg serve`."""

    allowed_origins: tuple[str, ...] = ()
    """Web pages of other servers that may ask this one, such as https://viewer.example."""
    upload_mib: Positive | None = None
    """Most that one upload may hold; nine bytes for each voxel of the largest patch when omitted."""


class TrackingConfig(Section):
    """Where MLflow listens."""

    mlflow_uri: str = ""
    """Tracking server; the environment's `MLFLOW_TRACKING_URI`, or SQLite in the campaign folder, when empty."""


class CampaignConfig(Section):
    """The whole campaign file."""

    format: Literal[1] = 1
    """Of the campaign file; a later one is refused."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=254)]
    """Names of classes 1…K; 0 is background and 255 is ignore."""
    seed: int = 0
    """Every random choice of the campaign follows from it."""
    database_url: str = ""
    """SQLAlchemy URL of the queue; SQLite in the campaign folder when empty."""
    consistency: ConsistencyConfig = ConsistencyConfig()
    triage: TriageConfig = TriageConfig()
    holdout: HoldoutConfig = HoldoutConfig()
    sampling: SamplingConfig = SamplingConfig()
    annotation: AnnotationConfig = AnnotationConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    query: QueryConfig = QueryConfig()
    stopping: StoppingConfig = StoppingConfig()
    trigger: TriggerConfig = TriggerConfig()
    cluster: ClusterConfig = ClusterConfig()
    server: ServerConfig = ServerConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("classes")
    @classmethod
    def _classes_are_distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple(name.strip() for name in value)
        if "" in value:
            raise ValueError("a class name is empty")
        if len(set(value)) != len(value):
            raise ValueError("class names must differ")
        return value

    @model_validator(mode="after")
    def _instances_are_of_one_class(self) -> Self:
        if self.annotation.labels == "instance" and len(self.classes) != 1:
            raise ValueError(f"instance labels need exactly one class, not {len(self.classes)}")
        return self

    @property
    def n_classes(self) -> int:
        """Number of foreground classes K."""
        return len(self.classes)


def check_config(data: dict[str, Any], where: str = "campaign.toml") -> CampaignConfig:
    """Return a campaign's settings from nested dictionaries, checked.

    Parameters
    ----------
    data : dict
        Settings by name, sections as dictionaries.
    where : str
        Where they stand, for the error message.

    Raises
    ------
    ConfigError
        If a key is unknown (the nearest known one is suggested) or a value out of range.

    Examples
    --------
    >>> config = check_config({"name": "liver", "classes": ["nucleus"], "holdout": {"guard_zyx": [1, 4, 4]}})
    >>> config.n_classes, config.holdout.guard_zyx
    (1, (1, 4, 4))
    >>> check_config({"name": "liver", "classes": ["nucleus"], "holdot": {}})
    Traceback (most recent call last):
    ...
    rescueseg.errors.ConfigError: campaign.toml: unknown key 'holdot'. Did you mean 'holdout'?
    """
    return check_section(CampaignConfig, data, where)
