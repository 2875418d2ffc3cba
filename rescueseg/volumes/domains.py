"""Grouping volumes into domains, and what each domain is resampled and normalised to."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wasserstein_distance

from rescueseg.campaign import GenerationFolder
from rescueseg.geometry import Spacing, same_spacing
from rescueseg.records import Domain, Domains, Normalisation
from rescueseg.volumes.describe import Measurement
from rescueseg.volumes.limits import limit
from rescueseg.volumes.normalise import common_linear, measure_samples, rescaled
from rescueseg.volumes.spacing_tags import shape_distance, tag_ratio
from rescueseg.volumes.volume_import import default_domain, is_default_domain

__all__ = ["Group", "automatic", "difference", "distance", "group", "same_spacing", "scale_distance", "trained_volumes"]

_CHANGES_TEXTURE = ("denoised", "deconvolved", "deblurred", "smoothed")
"""Treatments that a volume of the same domain must share."""

Maps = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Group:
    """Volumes that share a domain.

    Parameters
    ----------
    domain : Domain
        What they are resampled and normalised to.
    members : tuple of Measurement
        At least one.
    reference : Measurement
        The member on whose intensity scale the domain is.
    named : bool
        Whether a person named the domain.
    frozen : frozenset of str
        Members that a model was trained on.
    maps : dict of str to tuple of (gain, offset)
        Of each member's channels, to the domain's intensity scale.
    scales : dict of str to float
        Distance of each member's intensity scale from the reference's.
    """

    domain: Domain
    members: tuple[Measurement, ...]
    reference: Measurement
    named: bool
    frozen: frozenset[str]
    maps: dict[str, Maps]
    scales: dict[str, float]


def trained_volumes(generations: Iterable[GenerationFolder]) -> set[str]:
    """Return the volumes that a generation was, or is being, trained on: those of any snapshot."""
    snapshots = (generation.snapshot() for generation in generations)
    return {item.volume_id for snapshot in snapshots if snapshot for item in snapshot.items}


def automatic(measurement: Measurement) -> bool:
    """Tell whether nobody named the volume's domain."""
    return is_default_domain(measurement.record.domain)


def scale_distance(a: Measurement, b: Measurement) -> float:
    """Return the Wasserstein distance of the raw quantiles over their spread, the largest over the channels."""
    distances = []
    for p, q in zip(a.quantiles, b.quantiles, strict=True):
        spread = math.sqrt(p.std() * q.std())
        apart = float(wasserstein_distance(p, q))
        distances.append(apart / spread if spread > 0 else (0.0 if apart == 0 else math.inf))
    return max(distances)


def differences(a: Measurement, b: Measurement) -> dict[str, tuple[float, str]]:
    """Return by how much two volumes differ, for each criterion as a multiple of its limit, with the numbers."""
    ratio, shape = tag_ratio(a.spacing, b.spacing), shape_distance(a, b)
    criteria = {
        "spacing": (
            math.log(ratio) / math.log(limit("spacing")),
            f"its spacing differs by {ratio:.3g}× (limit {limit('spacing'):g})",
        ),
        "shape": (
            shape / limit("shape"),
            f"its intensity distribution is {shape:.2f} standard deviations away (limit {limit('shape'):g})",
        ),
    }
    if a.blur_um is not None and b.blur_um is not None:
        floor = limit("edges") * max(math.sqrt(m.spacing[1] * m.spacing[2]) for m in (a, b))
        blurs = [max(floor, m.blur_um or 0.0) for m in (a, b)]
        criteria["sharpness"] = (
            abs(math.log(blurs[0] / blurs[1])) / math.log(limit("sharpness")),
            f"its edges are blurred over {blurs[0]:.3g} µm, not {blurs[1]:.3g} (limit {limit('sharpness'):g}×)",
        )
    for key in ("microscope", "objective"):
        names = [m.record.hints.get(key, "") for m in (a, b)]
        if all(names) and names[0].casefold() != names[1].casefold():
            criteria[key] = (math.inf, f"its {key} is {names[0]}, not {names[1]}")
    treated = [{t for t in _CHANGES_TEXTURE if t in m.record.hints.get("preprocessing", "")} for m in (a, b)]
    if treated[0] != treated[1]:
        mine, theirs = (" and ".join(sorted(t)) or "untreated" for t in treated)
        criteria["preprocessing"] = (math.inf, f"it is {mine} by its name or metadata, the other {theirs}")
    return criteria


def distance(a: Measurement, b: Measurement) -> float:
    """Return how far two volumes are from sharing a domain: at most 1 when they may."""
    return max(value for value, _ in differences(a, b).values())


def difference(a: Measurement, b: Measurement) -> str:
    """Say what most keeps two volumes from sharing a domain."""
    return max(differences(a, b).values(), key=lambda entry: entry[0])[1]


def group(volumes: Sequence[Measurement], recorded: Domains, trained: Iterable[str]) -> list[Group]:
    """Group volumes into domains, the main one first.

    Volumes whose domain a person named, or that a model was trained on, keep it. The others join by complete linkage:
    the closest two groups merge as long as every pair of their volumes may share a domain. The order of the volumes
    does not matter.

    Parameters
    ----------
    volumes : sequence of Measurement
        All that may be used.
    recorded : Domains
        As the campaign has them; those with a trained volume are frozen.
    trained : iterable of str
        Ids of the volumes that a model was trained on.
    """
    trained_ids = set(trained)
    clusters: list[list[Measurement]] = []
    names: list[str] = []
    for m in sorted(volumes, key=lambda m: m.volume_id):
        name = m.record.domain if m.volume_id in trained_ids or not automatic(m) else ""
        if name and name in names:
            clusters[names.index(name)].append(m)
        else:
            clusters.append([m])
            names.append(name)
    _merge(clusters, names)
    order = sorted(range(len(clusters)), key=lambda i: _rank(clusters[i], trained_ids))
    used_names = {name for name in names if name}
    linear = common_linear(m.record.normalisation for m in volumes)
    groups = []
    for i in order:
        name = names[i] or _free_name(clusters[i], used_names)
        used_names.add(name)
        groups.append(_group(name, clusters[i], recorded, trained_ids, linear))
    return groups


def _merge(clusters: list[list[Measurement]], names: list[str]) -> None:
    """Merge the closest clusters, at most one of which has a name, while they may."""
    apart: dict[tuple[str, str], float] = {}
    for a, b in itertools.combinations([m for c in clusters for m in c], 2):
        apart[a.volume_id, b.volume_id] = apart[b.volume_id, a.volume_id] = distance(a, b)
    while True:
        pairs = [
            (max(apart[a.volume_id, b.volume_id] for a in clusters[i] for b in clusters[j]), i, j)
            for i, j in itertools.combinations(range(len(clusters)), 2)
            if not (names[i] and names[j])
        ]
        if not pairs or min(pairs)[0] > 1:
            return
        _, i, j = min(pairs)
        clusters[i] += clusters.pop(j)
        names[i] = names[i] or names[j]
        names.pop(j)


def _rank(members: Sequence[Measurement], trained: set[str]) -> tuple[bool, int, str]:
    """Return the order of the domains: those with a trained volume first, then by voxels, then by name."""
    first = min(m.volume_id for m in members)
    return not any(m.volume_id in trained for m in members), -sum(m.voxels for m in members), first


def _free_name(members: Sequence[Measurement], used_names: set[str]) -> str:
    typical = _on_most_voxels(members, lambda a, b: same_spacing(a.spacing, b.spacing))
    return free_name(default_domain(typical.record.dtype, typical.spacing), used_names)


def free_name(name: str, used_names: Collection[str]) -> str:
    """Return a name for a domain that no other has: the name itself, or with the first number that is free.

    Examples
    --------
    >>> free_name("uint8-1x1x1um", {"uint8-1x1x1um", "uint8-1x1x1um-2"})
    'uint8-1x1x1um-3'
    >>> free_name("uint8-1x1x1um-2", {"uint8-1x1x1um", "uint8-1x1x1um-2"})
    'uint8-1x1x1um-3'
    """
    base = re.sub(r"um-\d+$", "um", name) if is_default_domain(name) and name in used_names else name
    numbered = (f"{base}-{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n not in used_names)


def _on_most_voxels(members: Sequence[Measurement], same: Callable[[Measurement, Measurement], bool]) -> Measurement:
    """Return the member with which most voxels agree; of several the largest, then the first by id."""
    support = {m.volume_id: sum(o.voxels for o in members if same(m, o)) for m in members}
    return min(members, key=lambda m: (-support[m.volume_id], -m.voxels, m.volume_id))


def _group(name: str, members: Sequence[Measurement], recorded: Domains, trained: set[str], linear: float) -> Group:
    frozen = [m for m in members if m.volume_id in trained]
    recorded_domain = next((d for d in recorded.domains if d.name == name), None) if frozen else None
    base = frozen or list(members)
    near = limit("scale")
    reference = _on_most_voxels(
        [m for m in base if recorded_domain and m.record.normalisation == recorded_domain.normalisation] or base,
        lambda a, b: scale_distance(a, b) <= near,
    )
    scales = {m.volume_id: scale_distance(m, reference) for m in members}
    maps = {
        m.volume_id: _maps(m, reference) if scales[m.volume_id] > near else ((1.0, 0.0),) * m.record.channels
        for m in members
    }
    spacing: Spacing = _on_most_voxels(base, lambda a, b: same_spacing(a.spacing, b.spacing)).spacing
    normalisation = reference.record.normalisation if frozen else _pooled(members, maps, linear)
    domain = Domain(
        name=name,
        spacing_um_zyx=recorded_domain.spacing_um_zyx if recorded_domain else spacing,
        normalisation=normalisation,
        volumes={
            m.volume_id: m.record.normalisation
            if m.volume_id in trained
            else rescaled(normalisation, maps[m.volume_id])
            for m in members
        },
    )
    return Group(
        domain=domain,
        members=tuple(members),
        reference=reference,
        named=not is_default_domain(name),
        frozen=frozenset(m.volume_id for m in frozen),
        maps=maps,
        scales=scales,
    )


def _maps(measurement: Measurement, reference: Measurement) -> Maps:
    """Return the gain and offset that bring each channel's robust quantiles onto the reference's."""
    maps = []
    for mine, theirs in zip(measurement.quantiles, reference.quantiles, strict=True):
        gain = float(theirs.std() / mine.std()) if mine.std() > 0 and theirs.std() > 0 else 1.0
        maps.append((gain, float(theirs.mean() - gain * mine.mean())))
    return tuple(maps)


def _pooled(members: Sequence[Measurement], maps: dict[str, Maps], linear: float) -> Normalisation:
    """Measure the scaling of a domain over the samples of all its volumes, on the domain's intensity scale."""
    channels = members[0].record.channels
    return measure_samples(
        [
            np.concatenate(
                [
                    m.samples[c] * np.float32(maps[m.volume_id][c][0]) + np.float32(maps[m.volume_id][c][1])
                    for m in members
                ]
            )
            for c in range(channels)
        ],
        linear,
    )
