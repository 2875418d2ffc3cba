"""First masks for a campaign's queue: reads volumes and annotations, writes masks, makes them the tickets' prefill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rescueseg.campaign import Campaign, RecordFolder
from rescueseg.campaign.layout import WEAK_LABEL, WEAK_LABEL_CHOICE
from rescueseg.campaign.route import TRIAGE_SUMMARY
from rescueseg.errors import QueueError, WeakLabelError
from rescueseg.labels import class_names
from rescueseg.progress import Progress
from rescueseg.queue.records import TicketRecord
from rescueseg.queue.store import QueueStore
from rescueseg.records import AcceptedAnnotation, VolumeRecord
from rescueseg.shared_places import SharedPlaces
from rescueseg.storage import digest_json, file_digest
from rescueseg.volumes.comparison import ensure_compared
from rescueseg.weak_labels.base import WeakLabeller
from rescueseg.weak_labels.champion import ChampionLabeller, load_champion
from rescueseg.weak_labels.choice import CHOICE, WEIGHTS, ComparedPatch, MethodChoice, Result, Sources
from rescueseg.weak_labels.classifier import PixelClassifier, dump_classifier, load_classifier
from rescueseg.weak_labels.ilastik import IlastikLabeller, find_ilastik, label_order
from rescueseg.weak_labels.judgement import (
    doubt_by_annotations,
    doubt_by_scribbles,
    doubt_without_hint,
    stands_out,
)
from rescueseg.weak_labels.mask_file import mask_path, read_mask, write_mask
from rescueseg.weak_labels.methods import (
    FITTED,
    METHODS,
    AnnotatedPatch,
    agreements,
    best_method,
    classifier_agreement,
    method_for,
    polarity,
    train_patches,
)
from rescueseg.weak_labels.options import check_options
from rescueseg.weak_labels.published import Published
from rescueseg.weak_labels.published_methods import PUBLISHED, method_of, open_published
from rescueseg.weak_labels.samples import sample_volume
from rescueseg.weak_labels.scribbles import read_accepted, read_scribbles, scribbled_volumes

MOST_PATCHES = 6
"""Accepted annotations that methods are compared on: the first ones."""
CLASSIFIER_FILE = "classifier.skops"


def weak_label(
    campaign: Campaign,
    store: QueueStore,
    method: str = "auto",
    sources: Sources | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Give the queued pool tickets a first mask; a rerun with the same method and annotations changes nothing.

    Tickets with a mask of another method, or of a classifier trained on fewer annotations, get the new one. One that the
    annotations speak against is taken back, and its ticket starts empty. Those with a model's prediction keep it. Holdout
    tickets, those in refused volumes, and those that somebody has taken, are left alone.

    Parameters
    ----------
    campaign : Campaign
        The campaign.
    store : QueueStore
        Its queue.
    method : str
        One of `METHODS`, or "auto": the one that agrees best with the accepted pool annotations where there are some,
        else the one for the triage's problem type. What "auto" chose is painted only where it is likely right: see
        `rescueseg.weak_labels.judgement`.
    sources : Sources, optional
        Scribbles, ilastik project, other campaign, weights from elsewhere.
    dry_run : bool
        Choose, and write nothing.
    progress : callable, optional
        Called with what is counted, how many are done and how many there are.

    Raises
    ------
    WeakLabelError
        If the method is unknown, lacks what it needs, is given what it does not read, or cannot tell the campaign's classes
        apart.
    """
    check_options(method, sources or Sources())
    ensure_compared(campaign.volumes, progress, write=not dry_run)
    work = _Prefill(campaign, store, sources or Sources(), progress or (lambda *_: None))
    waiting = work.waiting()
    if method == "auto" and work.accepted and not waiting:
        return Result(method=method, reason="no ticket waits for a first mask", agreements={}, tickets=0, doubts={})
    chosen = work.choose() if method == "auto" else None
    choice, reason, table = (chosen.method, chosen.reason, chosen.agreements) if chosen else (method, "as asked", {})
    if choice not in METHODS:
        raise WeakLabelError(
            f"unknown method '{choice}'", where="--method", todo=f"Choose one of auto, {', '.join(METHODS)}"
        )
    work.require(choice)
    folder = work.folder(choice)
    doubts = work.doubts(chosen, waiting, folder) if chosen else {}
    empty = {t.ticket_id for t in waiting if chosen and (t.volume_id in doubts or work.starts_empty(chosen, folder, t))}
    due = [t for t in waiting if t.ticket_id not in empty and t.prefill != mask_path(folder, t)]
    wrong = [t for t in waiting if t.ticket_id in empty and chosen and work.is_doubted(chosen, t)]
    result = Result(
        method=choice,
        reason=reason,
        agreements=table,
        tickets=len(due),
        n_taken_back=len(wrong),
        doubts=doubts,
        notes=work.notes(choice),
    )
    if dry_run or not (due or chosen):
        return result
    if chosen:
        RecordFolder(campaign.storage, WEAK_LABEL_CHOICE.top).write(CHOICE, chosen)
    taken_back = sum(work.start_from(t, None, choice) for t in wrong)
    return work.label(choice, folder, due, chosen, result.model_copy(update={"n_taken_back": taken_back}))


class _Prefill:
    """One run: what it reads is read once."""

    def __init__(self, campaign: Campaign, store: QueueStore, sources: Sources, progress: Progress) -> None:
        self.campaign, self.store, self.sources, self.progress = campaign, store, sources, progress
        self.config = campaign.config
        self.volumes: dict[str, VolumeRecord] = {v.volume_id: v for v in campaign.volumes.records()}
        self.accepted: list[AcceptedAnnotation] = [
            a for a in store.views.accepted("pool") if a.volume_id in self.volumes
        ]
        self._labellers_by_method: dict[str, Mapping[str, WeakLabeller]] = {}
        self._loaded_champion: tuple[ChampionLabeller, str] | None = None
        self._opened: dict[str, Published] = {}

    # choosing ---------------------------------------------------------------------------------------------------------

    def waiting(self) -> list[TicketRecord]:
        """Return the queued pool tickets that may get a first mask, or another one."""
        queued = self.store.views.tickets("queued", "pool")
        return [
            t
            for t in queued
            if t.volume_id in self.volumes and (t.prefill is None or t.prefill.split("/")[0] == WEAK_LABEL.top)
        ]

    def choose(self) -> MethodChoice:
        """Return the choice that was written for the same annotations and sources, else make it."""
        known = RecordFolder(self.campaign.storage, WEAK_LABEL_CHOICE.top).read(CHOICE)
        key = self._key()
        return known if known and known.made_for == key else self._choose().model_copy(update={"made_for": key})

    def doubts(self, choice: MethodChoice, waiting: Sequence[TicketRecord], folder: str) -> dict[str, str]:
        """Return, by volume, why its tickets start empty."""
        if choice.doubt:
            return dict.fromkeys(sorted({t.volume_id for t in waiting}), choice.doubt)
        names = sorted({t.volume_id for t in waiting if t.prefill != mask_path(folder, t)})
        if choice.method not in FITTED or self.accepted or choice.method == "membranes":
            return {}  # that these are meant, the user or annotated voxels have said
        found = {
            n: doubt_without_hint(sample_volume(self.campaign, self.volumes[n]), self.volumes[n].spacing_um_zyx)
            for n in names
        }
        return {name: doubt for name, doubt in found.items() if doubt}

    def starts_empty(self, choice: MethodChoice, folder: str, ticket: TicketRecord) -> bool:
        """Tell whether a ticket's mask was made, and does not stand out from what the method invents."""
        path = mask_path(folder, ticket)
        if not self.accepted or not self.campaign.storage.exists(path):
            return False
        return not stands_out(read_mask(self.campaign.storage, path), choice.invented)

    def is_doubted(self, choice: MethodChoice, ticket: TicketRecord) -> bool:
        """Tell whether a ticket's own mask is of a method that the annotations speak against: the best of all is no good."""
        if not self.accepted or ticket.prefill is None:
            return False
        compared = {choice.method, *(name for name in choice.agreements if name in FITTED)}
        return ticket.prefill.split("/")[1].rpartition("-")[0] in compared

    def _key(self) -> str:
        """Return the digest of what the choice depends on."""
        triage = self.campaign.records.read(TRIAGE_SUMMARY)
        files = scribbled_volumes(self.sources.scribbles, self.volumes)
        content: list[Any] = [[a.ticket_id, a.labels_digest] for a in self.accepted]
        content += [
            sorted((v, file_digest(f)) for v, f in files.items()),
            self.config.seed,
            self.campaign.holdout_digest(),
        ]
        content += [self.sources.ilp and file_digest(self.sources.ilp), self.sources.from_campaign]
        content += [self._published(m).digest for m in (method_of(self.sources),) if m]
        content += [triage and triage.to_json(), [v.normalisation.to_json() for v in self.volumes.values()]]
        return digest_json(content)

    def _choose(self) -> MethodChoice:
        if not self.accepted:
            if self.sources.scribbles:
                made = classifier_agreement(self._scribbles(), self.config.n_classes, self.config.seed, dense=False)
                doubt = doubt_by_scribbles(made.dice if made else None)
                return MethodChoice(
                    method="classifier", reason="scribbles were given", agreements={}, compared_on=(), doubt=doubt
                )
            for method, source in self._given():
                return MethodChoice(method=method, reason=f"{source} was given", agreements={}, compared_on=())
            if self.config.n_classes > 1:
                raise WeakLabelError(
                    f"no method can tell {self.config.n_classes} classes apart without annotations",
                    where="--method auto",
                    todo="Give --scribbles, --ilp or --from-campaign, or annotate a patch first",
                )
            method, reason = method_for(self.campaign.records.read(TRIAGE_SUMMARY))
            return MethodChoice(method=method, reason=reason, agreements={}, compared_on=())
        places = self.campaign.volumes.shared_places()
        patches = [self._read(a, places) for a in self.accepted[:MOST_PATCHES]]
        names = [*(FITTED if self.config.n_classes == 1 else ())]
        names += [method for method, _ in self._given()]
        labellers = {}
        for index, name in enumerate(names):
            self.progress("comparing methods", index, len(names) + 1)
            labellers[name] = self._labellers(name)
        self.progress("comparing methods", len(names), len(names) + 1)
        numbered = self.config.annotation.labels == "instance"
        table = agreements(labellers, patches, self.config.n_classes, self.config.seed, numbered=numbered)
        if not table:
            raise WeakLabelError(
                "the accepted annotations hold one label alone",
                where="--method auto",
                todo="Annotate a patch that holds every class",
            )
        dice = {name: round(value.dice, 4) for name, value in table.items()}
        best = best_method(dice)
        many = "1 accepted annotation" if len(patches) == 1 else f"{len(patches)} accepted annotations"
        return MethodChoice(
            method=best,
            reason=f"it agrees best with {many}",
            agreements=dice,
            compared_on=self.compared_on(),
            doubt=doubt_by_annotations(table[best].spared),
            invented=round(table[best].invented, 4),
        )

    def _given(self) -> list[tuple[str, str]]:
        """Return the methods whose model a person provides, and which that is."""
        sources = self.sources
        given = (
            ("ilastik", sources.ilp),
            ("champion", sources.from_campaign),
            (method_of(sources), sources.weights),
        )
        return [(method, source) for method, source in given if source]

    def _scribbles(self) -> list[AnnotatedPatch]:
        files = scribbled_volumes(self.sources.scribbles, self.volumes).items()
        return [patch for name, file in files for patch in read_scribbles(self.campaign, self.volumes[name], file)]

    def compared_on(self) -> tuple[ComparedPatch, ...]:
        """Return the annotations that methods were compared on, and the mask each was made from: that method is favoured."""
        prefills = {t.ticket_id: t.prefill or "" for t in self.store.views.tickets(purpose="pool")}
        return tuple(
            ComparedPatch(ticket=a.ticket_id, began_from=prefills[a.ticket_id]) for a in self.accepted[:MOST_PATCHES]
        )

    def require(self, method: str) -> None:
        """Refuse a method that cannot do what this campaign needs."""
        if lacks := self.sources.lacks(method, is_annotated=bool(self.accepted)):
            raise WeakLabelError(
                f"the method '{method}' has nothing to start from", where="--method", todo=f"Give {lacks}"
            )
        if method == "ilastik":
            find_ilastik()
            label_order(self.sources.ilp, self.config.classes)
        if (method in FITTED or method in PUBLISHED) and self.config.n_classes > 1:
            raise WeakLabelError(
                f"the method '{method}' knows foreground alone, the campaign has {self.config.n_classes} classes",
                where="--method",
                todo="Use classifier, ilastik or champion",
            )
        if method in PUBLISHED:
            self._published(method)

    def notes(self, method: str) -> tuple[str, ...]:
        """Return what a person is told of a method's weights."""
        return self._published(method).notes if method in PUBLISHED else ()

    # making -----------------------------------------------------------------------------------------------------------

    def _read(self, accepted: AcceptedAnnotation, places: SharedPlaces) -> AnnotatedPatch:
        """Read an accepted annotation; see `rescueseg.weak_labels.scribbles.read_accepted`."""
        holdout = self.campaign.holdout()
        return read_accepted(self.campaign.volumes, accepted, self.config.n_classes, holdout, places)

    def folder(self, method: str) -> str:
        """Return the name of the folder of a method's masks: another one when it was made from something else."""
        if method == "classifier":
            training = [[a.ticket_id, a.labels_digest] for a in self.accepted]
            files = scribbled_volumes(self.sources.scribbles, self.volumes)
            content: Any = [training, [[v, file_digest(f)] for v, f in sorted(files.items())], self.config.seed]
            if files:  # of which those in the holdout are left out, in whichever volumes
                content += [self.campaign.holdout_digest(), self.campaign.volumes.relations().to_json()]
        elif method == "ilastik":
            content = file_digest(self.sources.ilp)
        elif method == "champion":
            content = self._champion()[1]
        elif method in PUBLISHED:
            content = self._published(method).digest
        else:
            content = polarity(self.campaign.records.read(TRIAGE_SUMMARY))
        scaling = [[v.volume_id, v.normalisation.to_json()] for v in self.volumes.values()]
        return f"{method}-{digest_json([content, scaling])[:12]}"

    def label(
        self, method: str, folder: str, due: Sequence[TicketRecord], choice: MethodChoice | None, result: Result
    ) -> Result:
        """Write the masks of tickets and make them their prefill, where they stand out from what the method invents.

        Returns the result with what became of them counted.
        """
        labellers = self._labellers(method) if due else {}
        if due and method in PUBLISHED:
            record_folder = RecordFolder(self.campaign.storage, f"{WEAK_LABEL.top}/{folder}")
            record_folder.write(WEIGHTS, self._published(method).used)
        n_claimed = n_empty = n_taken_back = 0
        for index, ticket in enumerate(due):
            self.progress(f"first masks by {method}", index, len(due))
            path = mask_path(folder, ticket)
            if not self.campaign.storage.exists(path):
                volume = self.volumes[ticket.volume_id]
                write_mask(self.campaign, labellers[volume.volume_id], volume, ticket, folder)
            if choice and self.starts_empty(choice, folder, ticket):
                n_empty += 1
                n_taken_back += self.is_doubted(choice, ticket) and self.start_from(ticket, None, method)
            else:
                n_claimed += not self.start_from(ticket, path, method)
        return result.model_copy(
            update={
                "tickets": len(due) - n_claimed - n_empty,
                "n_claimed": n_claimed,
                "n_empty": n_empty,
                "n_taken_back": result.n_taken_back + n_taken_back,
            }
        )

    def start_from(self, ticket: TicketRecord, path: str | None, method: str) -> bool:
        """Give a ticket a first mask, or none; tell whether it still waited."""
        names = class_names(self.config.classes, read_mask(self.campaign.storage, path)) if path else ()
        try:
            self.store.tickets.prefill(ticket.ticket_id, path, method, names)
        except QueueError:
            return False
        return True

    def _labellers(self, method: str) -> Mapping[str, WeakLabeller]:
        """Return the labeller of each volume."""
        if method not in self._labellers_by_method:
            self._labellers_by_method[method] = self._build_labellers(method)
        return self._labellers_by_method[method]

    def _build_labellers(self, method: str) -> Mapping[str, WeakLabeller]:
        if method == "classifier":
            return dict.fromkeys(self.volumes, self._classifier())
        if method == "champion":
            model = self._champion()[0]
            return {name: replace(model, normalisation=v.normalisation) for name, v in self.volumes.items()}
        if method == "ilastik":
            program, order = find_ilastik(), label_order(self.sources.ilp, self.config.classes)
            return {
                name: IlastikLabeller(program, self.sources.ilp, order, v.normalisation, v.dtype)
                for name, v in self.volumes.items()
            }
        pool_volumes = {t.volume_id for t in self.store.views.tickets(purpose="pool")}
        needed = {name: volume for name, volume in self.volumes.items() if name in pool_volumes}
        if method in PUBLISHED:
            make = self._published(method).labeller
            return {name: make(volume, sample_volume(self.campaign, volume)) for name, volume in needed.items()}
        side = polarity(self.campaign.records.read(TRIAGE_SUMMARY))
        return {
            name: FITTED[method](sample_volume(self.campaign, v), v.spacing_um_zyx, side) for name, v in needed.items()
        }

    def _classifier(self) -> PixelClassifier:
        """Train the classifier, or load the one that an earlier run trained on the same annotations."""
        path = WEAK_LABEL.path(method=self.folder("classifier"), file=CLASSIFIER_FILE)
        if self.campaign.storage.exists(path):
            return load_classifier(self.campaign.storage.read_bytes(path), path)
        self.progress("training the pixel classifier", 0, 1)
        places = self.campaign.volumes.shared_places()
        patches = [self._read(a, places) for a in self.accepted]
        patches += self._scribbles()
        dense = not self.sources.scribbles
        classifier = train_patches(patches, self.config.n_classes, self.config.seed, dense=dense)
        self.campaign.storage.write_bytes(path, dump_classifier(classifier))
        return classifier

    def _published(self, method: str) -> Published:
        """Return the weights that a person gave, read once."""
        if method not in self._opened:
            self._opened[method] = open_published(method, self.sources, self.volumes.values())
        return self._opened[method]

    def _champion(self) -> tuple[ChampionLabeller, str]:
        if self._loaded_champion is None:
            self._loaded_champion = load_champion(
                self.sources.from_campaign, self.config.classes, self.volumes.values()
            )
        return self._loaded_champion
