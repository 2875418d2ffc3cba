"""Which volumes of a campaign belong together: verdicts, and the domains that follow from them.

Volumes are described by a bounded read (`rescueseg.volumes.describe`), those that cannot be used are refused, the others
are grouped: two volumes share a domain when, resampled to one spacing and mapped to one intensity scale, they would look
alike. Domains that people named, or that a model was trained on, stay as they are. Nothing is written here but
`consistency.json`; `apply` records the domains.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import CampaignError
from rescueseg.geometry import Spacing
from rescueseg.progress import Progress
from rescueseg.records import Domains, Record
from rescueseg.volumes import domains as grouping
from rescueseg.volumes import spacing_tags
from rescueseg.volumes.describe import Description, Measurement, measure_volume
from rescueseg.volumes.domains import Group
from rescueseg.volumes.limits import LIMITS, limit
from rescueseg.volumes.opening import open_image

Verdict = Literal["accept", "normalise", "separate domain", "refuse"]


class VolumeVerdict(Record):
    """What is to become of one volume."""

    volume_id: str
    verdict: Verdict
    domain: str
    """Empty for a refused volume."""
    reason: str
    """One sentence."""
    warnings: tuple[str, ...] = ()
    """What a person should look at."""
    gain_offset: tuple[tuple[float, float], ...] = ()
    """Of each channel, to the domain's intensity scale."""
    spacing_um_zyx: Spacing
    channels: int
    dtype: str
    hints: dict[str, str]
    blur_um: float | None
    structure_um_zyx: tuple[float | None, ...]
    numbers: Description


class ConsistencyReport(Record):
    """The verdicts on all volumes of a campaign and the domains they make."""

    volumes: tuple[VolumeVerdict, ...]
    domains: Domains
    thresholds: dict[str, tuple[float, str, str]]
    """Value, unit, reason."""

    @property
    def chunks_read(self) -> int:
        """Chunks read of all volumes together."""
        return sum(v.numbers.chunks_read for v in self.volumes)


CONSISTENCY = RecordFile("consistency", ConsistencyReport)


def check(campaign: Campaign, progress: Progress | None = None) -> ConsistencyReport:
    """Describe and judge all volumes of a campaign; its voxels and records stay as they are.

    Parameters
    ----------
    campaign : Campaign
        With at least one volume. The report is written to its ``consistency.json``.
    progress : callable, optional
        Called while volumes are read.

    Raises
    ------
    CampaignError
        If there is no volume.
    """
    records = campaign.volumes.records(refused=True)
    if not records:
        raise CampaignError("the campaign has no volume", where=campaign.url, todo="Add one with 'rescueseg add'")
    measurements = []
    for record in records:
        image = open_image(campaign.volumes, record.volume_id)
        report_progress = (lambda done, total, name=record.volume_id: progress(name, done, total)) if progress else None
        measurements.append(measure_volume(record, image, image.chunks[-3:], report_progress))
    report = judge(campaign, measurements)
    campaign.records.write(CONSISTENCY, report)
    return report


def apply(volumes: VolumeFolder, report: ConsistencyReport) -> None:
    """Record the domains of a report and bring the volumes' records into line; killed half-way, run it again."""
    volumes.save_domains(report.domains)


def judge(
    campaign: Campaign, measurements: Sequence[Measurement], trained: Collection[str] | None = None
) -> ConsistencyReport:
    """Judge volumes by their measurements; nothing is written.

    Parameters
    ----------
    campaign : Campaign
        Its settings, its recorded domains and what its models were trained on count.
    measurements : sequence of Measurement
        All its volumes.
    trained : collection of str, optional
        Volumes that the model in question was trained on, whose scaling stays; those of all generations when omitted.
    """
    recorded = campaign.volumes.domains()
    trained = grouping.trained_volumes(campaign.generations()) if trained is None else trained
    config = campaign.config.consistency
    trusted = {*config.checked_spacing, *(v for v in trained if recorded.of(v))}
    refused = _refused(measurements, trusted)
    used = [m for m in measurements if m.volume_id not in refused]
    groups = grouping.group(used, recorded, trained)
    if config.different_spacing == "refuse":
        refused |= _other_spacing(groups)
        used = [m for m in measurements if m.volume_id not in refused]
        groups = grouping.group(used, recorded, trained)
    verdicts = [_refusal(m, refused[m.volume_id]) for m in measurements if m.volume_id in refused]
    main = groups[0] if groups else None
    verdicts += [_verdict(m, g, main) for g in groups for m in g.members]
    return ConsistencyReport(
        volumes=tuple(sorted(verdicts, key=lambda v: v.volume_id)),
        domains=Domains(domains=tuple(g.domain for g in groups), refused=refused),
        thresholds={name: (entry.value, entry.unit, entry.reason) for name, entry in LIMITS.items()},
    )


def _refused(measurements: Sequence[Measurement], trusted: set[str]) -> dict[str, str]:
    """Return the volumes that cannot be used, with the reason."""
    size: dict[int, int] = {}
    for m in measurements:
        size[m.record.channels] = size.get(m.record.channels, 0) + m.voxels
    channels = max(size, key=lambda c: (size[c], -c))
    reasons: dict[str, str] = {}
    for m in measurements:
        levels = m.description.levels
        if levels.low == levels.high:
            reasons[m.volume_id] = f"every voxel read has the value {levels.low:g}: there is no image in it"
        elif m.record.channels != channels:
            reasons[m.volume_id] = (
                f"it has {m.record.channels} channels, the campaign's other volumes {channels}; use one campaign for "
                "each kind of image"
            )
        elif levels.high_share > limit("saturated"):
            reasons[m.volume_id] = (
                f"{levels.high_share:.0%} of the voxels are saturated at {levels.high:g} (limit "
                f"{limit('saturated'):.0%}); acquire it again with less gain"
            )
    alike = [m for m in measurements if m.volume_id not in reasons]
    return reasons | spacing_tags.wrong_tags(alike, trusted)


def _other_spacing(groups: Sequence[Group]) -> dict[str, str]:
    reasons = {}
    for g in groups:
        for m in g.members:
            if not grouping.same_spacing(m.spacing, g.domain.spacing_um_zyx):
                reasons[m.volume_id] = (
                    f"its spacing {_um(m.spacing)} is not that of domain '{g.domain.name}', {_um(g.domain.spacing_um_zyx)}, "
                    'and consistency.different_spacing is "refuse"'
                )
    return reasons


def _refusal(m: Measurement, reason: str) -> VolumeVerdict:
    return _volume_verdict(m, "refuse", "", reason, ())


def _verdict(m: Measurement, group: Group, main: Group | None) -> VolumeVerdict:
    """Return the verdict on a volume that is used."""
    domain, maps = group.domain, group.maps[m.volume_id]
    notes = []
    if not grouping.same_spacing(m.spacing, domain.spacing_um_zyx):
        notes.append(f"resampled from {_um(m.spacing)} to the domain's {_um(domain.spacing_um_zyx)}")
    verdict: Verdict = "accept"
    if m.volume_id in group.frozen:
        notes.insert(0, f"a model was trained on it, so it stays in '{domain.name}' as it is")
    elif any(pair != (1.0, 0.0) for pair in maps):
        verdict = "normalise"
        gain, offset = maps[0]
        notes.insert(
            0,
            f"its intensity scale is {group.scales[m.volume_id]:.2g} standard deviations from that of '{domain.name}' "
            f"(limit {limit('scale'):g}): mapped by {gain:.4g} × v {'+' if offset >= 0 else '−'} {abs(offset):.4g}",
        )
    elif group is not main and main is not None and not group.named:
        verdict = "separate domain"
        notes.insert(0, f"not of '{main.domain.name}': {grouping.difference(m, main.reference)}")
    elif len(group.members) == 1:
        notes.insert(0, f"alone in domain '{domain.name}'" + (", which a person named" if group.named else ""))
    else:
        worst = max(grouping.distance(m, o) for o in group.members if o is not m)
        notes.insert(
            0,
            f"a person put it in '{domain.name}'"
            if group.named and worst > 1
            else f"agrees with '{domain.name}': intensities {group.scales[m.volume_id]:.2g} standard deviations apart "
            f"(limit {limit('scale'):g})",
        )
    warnings = _warnings(m)
    if group.named and m.volume_id not in group.frozen and not grouping.automatic(m):
        unlike = [o for o in group.members if o is not m and grouping.distance(m, o) > 1]
        warnings += [f"unlike '{o.volume_id}' of its domain: {grouping.difference(m, o)}" for o in unlike[:1]]
    return _volume_verdict(m, verdict, domain.name, "; ".join(notes), maps, tuple(warnings))


def _volume_verdict(
    m: Measurement,
    verdict: Verdict,
    domain: str,
    reason: str,
    maps: tuple[tuple[float, float], ...],
    warnings: tuple[str, ...] = (),
) -> VolumeVerdict:
    return VolumeVerdict(
        volume_id=m.volume_id,
        verdict=verdict,
        domain=domain,
        reason=reason,
        warnings=warnings,
        gain_offset=maps,
        spacing_um_zyx=m.spacing,
        channels=m.record.channels,
        dtype=m.record.dtype,
        hints=m.record.hints,
        blur_um=m.blur_um,
        structure_um_zyx=m.structure_um,
        numbers=m.description,
    )


def _warnings(m: Measurement) -> list[str]:
    """Return what a person should look at in a volume that is used."""
    levels, warnings = m.description.levels, []
    for share, value, what in ((levels.high_share, levels.high, "top"), (levels.low_share, levels.low, "bottom")):
        if share > limit("clipped"):
            warnings.append(f"{share:.1%} of the voxels are clipped at the {what}, {value:g}")
    warnings += [
        f"{share:.1%} of the voxels have the one value {value:g}" for value, share in levels.spikes if share > 0.02
    ]
    if spacing_tags.is_default(m.spacing):
        warnings.append("the spacing 1 × 1 × 1 µm is what programs write where nobody said")
    z, *plane = m.structure_um
    plane_lengths = [v for v in plane if v is not None]
    if z is not None and plane_lengths:
        ratio = z / math.prod(plane_lengths) ** (1 / len(plane_lengths))
        if not 1 / limit("squashed") <= ratio <= limit("squashed"):
            warnings.append(
                f"structures are {ratio:.2g} times as long along z as in the plane: is the z spacing right?"
            )
    return warnings


def _um(spacing: Spacing) -> str:
    return " × ".join(f"{s:.4g}" for s in spacing) + " µm"


def summary(report: ConsistencyReport) -> dict[str, dict[str, str]]:
    """Return the verdicts alone, by volume id: for logs and for the artifact that Prefect keeps."""
    return {v.volume_id: {"verdict": v.verdict, "domain": v.domain, "reason": v.reason} for v in report.volumes}


@dataclass(frozen=True)
class Changes:
    """What applying a report would change.

    Parameters
    ----------
    moved, scaled, refused, readmitted : tuple of str
        Volumes that get another domain, another normalisation, are refused now, or no longer.
    """

    moved: tuple[str, ...]
    scaled: tuple[str, ...]
    refused: tuple[str, ...]
    readmitted: tuple[str, ...]


def changes(volumes: VolumeFolder, report: ConsistencyReport) -> Changes:
    """Return what `apply` would change in the volumes' records."""
    moved, scaled, refused, readmitted = [], [], [], []
    for record in volumes.records(refused=True):
        domain = report.domains.of(record.volume_id)
        if domain is None:
            refused += [record.volume_id] if not record.refused else []
            continue
        moved += [record.volume_id] if record.domain != domain.name else []
        scaled += [record.volume_id] if record.normalisation != domain.volumes[record.volume_id] else []
        readmitted += [record.volume_id] if record.refused else []
    return Changes(tuple(moved), tuple(scaled), tuple(refused), tuple(readmitted))
