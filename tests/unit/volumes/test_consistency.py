"""Verdicts and domains: what belongs together, what is mapped, what is refused, and what is recorded of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from typer.testing import CliRunner

from rescueseg.campaign import Campaign, VolumeFolder
from rescueseg.campaign.stage_results import SNAPSHOT
from rescueseg.cli.main import app
from rescueseg.config import check_config
from rescueseg.errors import CampaignError
from rescueseg.geometry import Box
from rescueseg.records import Normalisation, Snapshot, SnapshotItem, VolumeRecord
from rescueseg.volumes import consistency, ome_zarr
from rescueseg.volumes.consistency import ConsistencyReport, VolumeVerdict, apply, changes, check
from rescueseg.volumes.image_layout import ImageLayout
from rescueseg.volumes.normalise import LINEAR, measure, normalise, rescaled
from rescueseg.volumes.phantom import make_phantom
from rescueseg.volumes.spacing_tags import implausibility
from rescueseg.volumes.volume_import import default_domain

SPACING = (0.25, 0.1, 0.1)


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    return make_phantom((32, 160, 160), SPACING, seed=1)[0]


@pytest.fixture(scope="module")
def other() -> np.ndarray:
    """Another sample under the same microscope."""
    return make_phantom((32, 160, 160), SPACING, seed=2)[0]


def add(campaign: Campaign, name: str, voxels: np.ndarray, spacing: Sequence[float] = SPACING, **more: Any) -> None:
    image = voxels if voxels.ndim == 4 else voxels[None]
    array = ome_zarr.create_image(campaign.volumes.image_url(name), ImageLayout(image.shape, image.dtype, spacing))
    array[:] = image
    z, y, x = (float(s) for s in spacing)
    values = {
        "volume_id": name, "domain": default_domain(str(image.dtype), (z, y, x)), "shape_zyx": image.shape[1:],
        "spacing_um_zyx": (z, y, x), "channels": len(image), "dtype": str(image.dtype), "source": f"{name}.tif",
        "digest": "0", "normalisation": measure(image, (32, 64, 64)),
    }  # fmt: skip
    campaign.volumes.save(VolumeRecord.model_validate(values | more))


def coarser(voxels: np.ndarray, factor: float) -> np.ndarray:
    """Sample the same field with larger pixels, as a camera would: light is summed, not picked."""
    size = (1, factor, factor)
    smooth = ndimage.gaussian_filter(voxels.astype(np.float32), (0, factor / 3, factor / 3))
    return ndimage.zoom(smooth, [1 / s for s in size], order=1).astype(voxels.dtype)


def verdicts(report: ConsistencyReport) -> dict[str, VolumeVerdict]:
    return {v.volume_id: v for v in report.volumes}


def trained_on(campaign: Campaign, *volume_ids: str) -> None:
    """Write the snapshot of a generation that read these volumes."""
    box = Box((0, 0, 0), (4, 4, 4))
    items = tuple(
        SnapshotItem(
            ticket_id=v, volume_id=v, box=box, read_box=box, annotation_id=v, labels="annotations/a/b.npz",
            labels_digest="",
        )
        for v in volume_ids
    )  # fmt: skip
    snapshot = Snapshot(generation=0, items=items, n_classes=1, holdout_digest="", digest="0")
    campaign.generation(0).write(SNAPSHOT, snapshot)


# domains -------------------------------------------------------------------------------------------------------------


def test_spacing_bit_depth_and_scale_end_in_the_right_domains(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray
) -> None:
    add(campaign, "a", phantom)
    eight = np.clip(coarser(other, 1.5) / 6.0, 0, 255).astype(np.uint8)
    add(campaign, "b", eight, (0.25, 0.15, 0.15))
    y = np.linspace(0, 8 * np.pi, 160)
    stripes = 2000 + 1500 * np.sign(np.sin(y))[None, :, None] + np.random.default_rng(0).normal(0, 50, phantom.shape)
    add(campaign, "c", stripes.astype(np.uint16), (1.0, 0.8, 0.8))
    report = check(campaign)
    found = verdicts(report)
    assert {v: found[v].verdict for v in "abc"} == {"a": "accept", "b": "normalise", "c": "separate domain"}
    assert found["a"].domain == found["b"].domain == "uint16-0.25x0.1x0.1um"
    assert found["c"].domain == "uint16-1x0.8x0.8um"
    assert "resampled from 0.25 × 0.15 × 0.15 µm" in found["b"].reason
    [(gain, _)] = found["b"].gain_offset
    assert gain == pytest.approx(6, rel=0.15)
    assert found["b"].numbers.levels.bits == 8
    assert "limit" in found["c"].reason
    assert [d.spacing_um_zyx for d in report.domains.domains] == [SPACING, (1.0, 0.8, 0.8)]


def test_a_mapped_volume_is_normalised_to_the_same_voxels(campaign: Campaign, phantom: np.ndarray) -> None:
    add(campaign, "a", phantom)
    gained = (phantom * 3.0 + 700).astype(np.uint16)
    add(campaign, "b", gained)
    report = check(campaign)
    apply(campaign.volumes, report)
    one, two = (
        normalise(v[None], campaign.volumes.record(n).normalisation) for n, v in (("a", phantom), ("b", gained))
    )
    assert sorted(v.verdict for v in report.volumes) == ["accept", "normalise"]
    assert np.abs(one - two).max() < 0.02
    assert campaign.volumes.record("a").domain == campaign.volumes.record("b").domain


@settings(deadline=None)
@given(st.floats(0.01, 300), st.floats(-1000, 1000), st.integers(1, 3))
def test_a_rescaled_normalisation_undoes_the_map(gain: float, offset: float, channels: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, (channels, 4, 8, 8)).astype(np.float32)
    domain = measure(image, (4, 8, 8))
    mapped = ((image - offset) / gain).astype(np.float64)
    again = normalise(mapped, rescaled(domain, [(gain, offset)] * channels))
    assert again == pytest.approx(normalise(image, domain), abs=0.05)


def test_two_samples_of_one_kind_share_one_normalisation(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray
) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", other)
    apply(campaign.volumes, check(campaign))
    [domain] = campaign.volumes.domains().domains
    assert (
        campaign.volumes.record("a").normalisation == campaign.volumes.record("b").normalisation == domain.normalisation
    )
    both = measure(np.stack([phantom, other])[:1], (32, 64, 64))
    assert domain.normalisation.mean == pytest.approx(both.mean, rel=0.2)


@pytest.mark.parametrize("trained", [True, False])
def test_a_domain_with_a_volume_of_an_earlier_version_keeps_its_rule(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray, trained: bool
) -> None:
    add(campaign, "a", phantom, normalisation=measure(phantom[None], (32, 64, 64), linear=0))
    add(campaign, "b", other)
    add(campaign, "c", other * 9, (1.0, 0.8, 0.8))
    if trained:
        trained_on(campaign, "a")
    apply(campaign.volumes, check(campaign))
    assert {r.normalisation.linear for r in campaign.volumes.records()} == {0}
    assert campaign.volumes.record("c").domain != campaign.volumes.record("a").domain


def test_domains_of_new_volumes_have_the_rule_of_today(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray
) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", (other * 3.0 + 700).astype(np.uint16))
    apply(campaign.volumes, check(campaign))
    assert {r.normalisation.linear for r in campaign.volumes.records()} == {LINEAR}


def test_the_order_of_the_names_does_not_matter(tmp_path: Path, phantom: np.ndarray, other: np.ndarray) -> None:
    found = []
    for names in ("abc", "cab"):
        campaign = Campaign.create(str(tmp_path / names), check_config({"name": "n", "classes": ["o"]}))
        kinds = (phantom, (other * 4).astype(np.uint16), np.sqrt(other).astype(np.uint8) ** 2 % 97)
        for name, voxels in zip(names, kinds, strict=True):
            add(campaign, name, voxels)
        report = verdicts(check(campaign))
        found.append([[report[a].domain == report[b].domain for a in names] for b in names])
    assert found[0] == found[1]


def test_a_domain_that_a_person_named_is_kept(campaign: Campaign, phantom: np.ndarray, other: np.ndarray) -> None:
    blurred = ndimage.gaussian_filter(other, (0, 4, 4))
    add(campaign, "a", phantom, domain="confocal")
    add(campaign, "b", blurred, domain="confocal")
    add(campaign, "c", other)
    found = verdicts(check(campaign))
    assert {found[v].domain for v in "ab"} == {"confocal"}
    assert found["b"].verdict == "accept"
    assert any("unlike" in w and "blurred" in w for w in found["b"].warnings)


def test_metadata_that_disagree_make_separate_domains(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray
) -> None:
    add(campaign, "a", phantom, hints={"objective": "Plan 63× NA 1.4"})
    add(campaign, "b", other, hints={"objective": "Plan 20× NA 0.8"})
    add(campaign, "c", other[::-1].copy(), hints={"preprocessing": "denoised"})
    found = verdicts(check(campaign))
    assert [found[v].verdict for v in "abc"].count("separate domain") == 2
    assert any("objective is Plan" in v.reason for v in found.values())
    assert "denoised" in found["c"].reason


def test_another_sharpness_is_another_domain(campaign: Campaign, phantom: np.ndarray, other: np.ndarray) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", phantom[::-1].copy())
    add(campaign, "c", ndimage.gaussian_filter(other, (0, 5, 5)))
    found = verdicts(check(campaign))
    assert [found[v].verdict for v in "abc"] == ["accept", "accept", "separate domain"]


# refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [(2, 2, 2), (0.5, 0.5, 0.5), (1, 3, 3), (4, 1, 1), (1000, 1000, 1000)])
def test_a_wrong_spacing_tag_is_caught(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray, factor: Sequence[float]
) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", phantom[:, ::-1].copy())
    add(campaign, "wrong", other, [s * f for s, f in zip(SPACING, factor, strict=True)])
    found = verdicts(check(campaign))
    assert {v: found[v].verdict for v in ("a", "b", "wrong")} == {"a": "accept", "b": "accept", "wrong": "refuse"}
    assert "spacing" in found["wrong"].reason
    assert "--spacing" in found["wrong"].reason


@pytest.mark.parametrize("factor", [1.3, 1.5, 1.9])
def test_an_honest_other_spacing_is_not_caught(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray, factor: float
) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", coarser(other, factor), (SPACING[0], SPACING[1] * factor, SPACING[2] * factor))
    found = verdicts(check(campaign))
    assert "refuse" not in {v.verdict for v in found.values()}


def test_of_two_alone_both_are_doubted_until_a_person_vouches(
    tmp_path: Path, phantom: np.ndarray, other: np.ndarray
) -> None:
    for checked, expected in (((), ["refuse", "refuse"]), (("a",), ["accept", "refuse"])):
        config = check_config({"name": "n", "classes": ["o"], "consistency": {"checked_spacing": checked}})
        campaign = Campaign.create(str(tmp_path / "".join(["c", *checked])), config)
        add(campaign, "a", phantom)
        add(campaign, "b", other, [2 * s for s in SPACING])
        assert [v.verdict for v in check(campaign).volumes] == expected


def test_the_default_of_programs_gives_way(campaign: Campaign, phantom: np.ndarray, other: np.ndarray) -> None:
    add(campaign, "a", phantom, (1.0, 1.0, 1.0))
    add(campaign, "b", other)
    found = verdicts(check(campaign))
    assert [found[v].verdict for v in "ab"] == ["refuse", "accept"]


@pytest.mark.parametrize(
    ("spacing", "word"),
    [((1, 25_400 / 72, 25_400 / 72), "72 dpi"), ((500, 120, 120), "mm"), ((2e-5, 1e-5, 1e-5), "mm"), (SPACING, "")],
)
def test_absurd_spacings_are_named(spacing: tuple[float, float, float], word: str) -> None:
    assert word in implausibility(spacing)
    assert bool(word) == bool(implausibility(spacing))


def test_noise_vouches_for_no_spacing(campaign: Campaign) -> None:
    rng = np.random.default_rng(0)
    for name, factor in (("a", 1), ("b", 3)):
        noise = rng.integers(0, 4096, (16, 64, 64), dtype=np.uint16)
        add(campaign, name, noise, [s * factor for s in SPACING])
    assert "refuse" not in {v.verdict for v in check(campaign).volumes}


def test_what_holds_no_image_or_another_kind_is_refused(campaign: Campaign, phantom: np.ndarray) -> None:
    add(campaign, "a", phantom)
    add(campaign, "flat", np.full_like(phantom, 7))
    add(campaign, "two", np.stack([phantom, phantom])[:, :16, :80, :80].copy())
    add(campaign, "white", np.clip(phantom, 0, int(np.quantile(phantom, 0.6))))
    found = verdicts(check(campaign))
    assert [found[v].verdict for v in ("a", "flat", "two", "white")] == ["accept", "refuse", "refuse", "refuse"]
    assert "value 7" in found["flat"].reason
    assert "2 channels" in found["two"].reason
    assert "saturated" in found["white"].reason


def test_another_spacing_is_refused_when_the_campaign_says_so(
    tmp_path: Path, phantom: np.ndarray, other: np.ndarray
) -> None:
    config = check_config({"name": "n", "classes": ["o"], "consistency": {"different_spacing": "refuse"}})
    campaign = Campaign.create(str(tmp_path / "c"), config)
    add(campaign, "a", phantom)
    add(campaign, "b", coarser(other, 1.5), (0.25, 0.15, 0.15))
    found = verdicts(check(campaign))
    assert [found[v].verdict for v in "ab"] == ["accept", "refuse"]
    assert "different_spacing" in found["b"].reason


def test_a_campaign_without_volumes_is_one_clear_error(campaign: Campaign) -> None:
    with pytest.raises(CampaignError, match="no volume"):
        check(campaign)


# recorded ------------------------------------------------------------------------------------------------------------


def test_checking_alone_changes_nothing_and_applying_twice_changes_nothing_more(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray
) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", (other * 5).astype(np.uint16))
    before = campaign.volumes.records()
    report = check(campaign)
    assert campaign.volumes.records() == before
    assert campaign.volumes.domains().domains == ()
    assert changes(campaign.volumes, report).scaled == ("a", "b")
    apply(campaign.volumes, report)
    after = campaign.volumes.records()
    again = check(campaign)
    assert again == check(campaign)
    assert again.domains == report.domains
    assert not any((changes(campaign.volumes, again).moved, changes(campaign.volumes, again).scaled))
    apply(campaign.volumes, again)
    assert campaign.volumes.records() == after


def test_killed_half_way_it_is_finished_by_whoever_comes_next(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", (other * 5).astype(np.uint16))
    report, saved = check(campaign), []

    def killed(record: VolumeRecord) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(record)
        VolumeFolder.save(campaign.volumes, record)

    monkeypatch.setattr(campaign.volumes, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        apply(campaign.volumes, report)
    monkeypatch.undo()
    changed = [
        v for v in campaign.volumes.records() if v.normalisation == report.domains.domains[0].volumes[v.volume_id]
    ]
    assert len(changed) == 1
    campaign.volumes.apply_domains()
    for record in campaign.volumes.records():
        assert record.normalisation == report.domains.domains[0].volumes[record.volume_id]


def test_what_a_model_was_trained_with_stays(campaign: Campaign, phantom: np.ndarray, other: np.ndarray) -> None:
    add(campaign, "a", phantom)
    apply(campaign.volumes, check(campaign))
    [first] = campaign.volumes.domains().domains
    trained_on(campaign, "a")
    for name, voxels in (("b", other), ("c", (other[::-1] * 4).astype(np.uint16)), ("d", coarser(other, 1.5))):
        spacing = SPACING if name != "d" else (0.25, 0.15, 0.15)
        add(campaign, name, voxels, spacing)
    report = check(campaign)
    apply(campaign.volumes, report)
    [domain] = campaign.volumes.domains().domains
    assert (domain.spacing_um_zyx, domain.normalisation) == (first.spacing_um_zyx, first.normalisation)
    assert (
        campaign.volumes.record("b").normalisation == campaign.volumes.record("d").normalisation == first.normalisation
    )
    assert campaign.volumes.record("c").normalisation.std == pytest.approx(4 * first.normalisation.std, rel=0.2)
    assert "trained" in verdicts(report)["a"].reason


def test_a_model_trained_before_any_check_keeps_its_scaling(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray
) -> None:
    add(campaign, "a", phantom, normalisation=Normalisation(low=0, high=4000, mean=1000, std=500))
    add(campaign, "b", other)
    trained_on(campaign, "a")
    apply(campaign.volumes, check(campaign))
    assert campaign.volumes.record("a").normalisation.mean == campaign.volumes.record("b").normalisation.mean == 1000


def test_a_refused_volume_is_out_until_a_later_check_lets_it_in(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray
) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", phantom[::-1].copy())
    add(campaign, "wrong", other, [3 * s for s in SPACING])
    apply(campaign.volumes, check(campaign))
    assert [v.volume_id for v in campaign.volumes.records()] == ["a", "b"]
    assert "spacing" in campaign.volumes.record("wrong").refused
    config = campaign.config.model_copy(
        update={"consistency": campaign.config.consistency.model_copy(update={"checked_spacing": ("a", "b", "wrong")})}
    )
    vouched = Campaign(campaign.storage, config)
    report = check(vouched)
    assert changes(vouched.volumes, report).readmitted == ("wrong",)
    apply(vouched.volumes, report)
    assert [v.volume_id for v in campaign.volumes.records()] == ["a", "b", "wrong"]


# the command ---------------------------------------------------------------------------------------------------------


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_reports_first_and_changes_only_when_told(
    campaign: Campaign, phantom: np.ndarray, other: np.ndarray
) -> None:
    add(campaign, "a", phantom)
    add(campaign, "b", phantom[::-1].copy())
    add(campaign, "wrong", other, [3 * s for s in SPACING])
    before = campaign.volumes.records()
    said = run("check", campaign.url)
    assert "Nothing was changed but consistency.json and relations.json" in said
    assert "wrong: would be refused" in said
    assert campaign.volumes.records(refused=True) == sorted(before, key=lambda v: v.volume_id)
    kept = campaign.storage.read_json("consistency.json")
    assert ConsistencyReport.model_validate(kept).chunks_read == sum(
        v["numbers"]["chunks_read"] for v in kept["volumes"]
    )
    said = run("check", campaign.url, "--apply")
    assert "wrong: refused" in said
    assert "refused: its texture" in run("status", campaign.url)
    assert len(campaign.volumes.domains().domains) == 1


def test_no_generation_trains_between_the_judgement_and_its_application(
    campaign: Campaign, phantom: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rescueseg.errors import QueueError
    from rescueseg.queue.due import campaign_lock
    from rescueseg.queue.store import open_queue

    add(campaign, "a", phantom)
    judge, met = consistency.judge, []

    def judged(*arguments: Any) -> ConsistencyReport:
        with pytest.raises(QueueError), campaign_lock(campaign.config, open_queue(campaign)):
            pass
        met.append(True)
        return judge(*arguments)

    monkeypatch.setattr(consistency, "judge", judged)
    run("check", campaign.url, "--apply")
    assert met
    assert len(campaign.volumes.domains().domains) == 1


def test_tickets_of_a_refused_volume_are_withdrawn(campaign: Campaign, phantom: np.ndarray, other: np.ndarray) -> None:
    from rescueseg.queue.store import open_queue

    add(campaign, "a", phantom)
    add(campaign, "b", phantom[::-1].copy())
    add(campaign, "wrong", other, [3 * s for s in SPACING])
    run("sample", campaign.url)
    store = open_queue(campaign)
    assert {t.volume_id for t in store.views.tickets("queued")} == {"a", "b", "wrong"}
    run("check", campaign.url, "--apply")
    assert {t.volume_id for t in store.views.tickets("queued")} == {"a", "b"}
    assert {t.volume_id for t in store.views.tickets("skipped")} == {"wrong"}


# real volumes --------------------------------------------------------------------------------------------------------


def real(folder: Path, name: str) -> tuple[np.ndarray, list[float]]:
    spacing = json.loads((folder / name / "meta.json").read_text())["voxel_size_um_zyx"]
    return tifffile.imread(folder / name / "raw.tif"), spacing


@pytest.mark.parametrize("name", ["bbbc050_mosaic_train", "flyem_fib25_train2", "plantseg_ovule_cells"])
def test_halves_of_a_real_volume_share_a_domain_and_a_wrong_tag_shows(
    campaign: Campaign, real_data: Path, name: str
) -> None:
    voxels, spacing = real(real_data, name)
    half = voxels.shape[2] // 2
    add(campaign, "left", voxels[..., :half], spacing)
    add(campaign, "right", voxels[..., half:], spacing)
    assert [v.verdict for v in check(campaign).volumes] == ["accept", "accept"]
    add(campaign, "wrong", voxels[:, ::-1], [2 * s for s in spacing])
    found = verdicts(check(campaign))
    assert [found[v].verdict for v in ("left", "right", "wrong")] == ["accept", "accept", "refuse"]


def test_no_real_volume_is_refused_and_microscopes_stay_apart(campaign: Campaign, real_data: Path) -> None:
    for folder in sorted(p for p in real_data.iterdir() if (p / "raw.tif").exists()):
        voxels, spacing = real(real_data, folder.name)
        add(campaign, folder.name, voxels, spacing)
    report = check(campaign)
    assert {v.volume_id: v.reason for v in report.volumes if v.verdict == "refuse"} == {}
    domains = {v.volume_id: v.domain for v in report.volumes}
    light = {domains[n] for n in domains if not n.startswith(("cdeep3m", "flyem", "gala"))}
    electrons = {domains[n] for n in domains if n.startswith(("cdeep3m", "flyem", "gala"))}
    assert not light & electrons
