"""An endpoint that clients of MONAI Label (3D Slicer among them) take for a MONAI Label server.

What they call an image is a lease: its id cannot be guessed and works while the lease runs, because 3D Slicer fetches
images without a token. An image shows the patch with its surroundings; in labels everything outside the patch is 255,
and what a client draws there is dropped. Whatever goes wrong is a status other than 200 with one sentence.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from requests_toolbelt import MultipartEncoder

from rescueseg.annotation.client import Filters
from rescueseg.annotation.local_client import LocalDesk
from rescueseg.errors import (
    LabelError,
    LabelWarningsError,
    LeaseExpiredError,
    QueueError,
    TicketNotFoundError,
    UnknownTokenError,
)
from rescueseg.labels import PatchLabels, check_patch
from rescueseg.queue.execute import labels_digest
from rescueseg.queue.records import Lease
from rescueseg.server import access
from rescueseg.server import monai_images as images
from rescueseg.server.clients import Service
from rescueseg.server.monai_sessions import predicted, session_routes
from rescueseg.server.monai_training import training_routes
from rescueseg.server.monai_users import Seats, read_params
from rescueseg.server.uploads import AT_ONCE

TOOL = "MONAI Label client"
CHAMPION = "champion"
STRATEGIES: dict[str, tuple[str, Filters]] = {
    "queue": ("The next patch of the campaign, the most useful one first", Filters()),
    "pool": ("The next patch to train on", Filters(purpose="pool")),
    "validation": ("The next validation box: annotate all of it", Filters(purpose="validation")),
    "test": ("The next test box: annotate all of it", Filters(purpose="test")),
}
"""What a client may ask for: description and filter by name."""


def monai_label_routes(office: Service) -> APIRouter:
    """Return the routes of the endpoint; they go below a prefix of their own."""
    router, seats = APIRouter(tags=["MONAI Label"]), Seats(office)
    for add in (_auth, _about, _next, _datastore, _labels, _infer, session_routes, training_routes):
        add(router, seats)
    return router


def _auth(router: APIRouter, seats: Seats) -> None:
    @router.get("/auth/", summary="Whether a token is needed")
    def auth() -> dict[str, Any]:
        return {"enabled": not seats.office.is_open, "client_id": "rescueseg", "realm": "rescueseg"}

    @router.post("/auth/token", summary="A token for a name and the token as its password")
    def token(username: Annotated[str, Form()], password: Annotated[str, Form()]) -> dict[str, str]:
        if access.holder(seats.office.campaign, password).name != username:
            raise UnknownTokenError("the token is somebody else's", todo="Give the name that it was made for")
        return {"access_token": password, "token_type": "bearer"}

    @router.get("/auth/token/valid", summary="Whether the token is good")
    def valid(request: Request) -> dict[str, str]:
        return {"username": seats.of(request).annotator}


def _about(router: APIRouter, seats: Seats) -> None:
    @router.get("/info/", summary="The campaign, its classes, models and strategies")
    def info(request: Request) -> dict[str, Any]:
        desk = seats.of(request)
        about = desk.info()
        names = images.label_names(about)
        model = {"labels": names, "description": "The latest generation of the campaign", "config": {}}
        return {
            "name": about.campaign,
            "description": f"rescueseg campaign of {about.kind} labels",
            "version": "0.8.5",
            "labels": names,
            "models": {CHAMPION: {**model, "type": "segmentation", "dimension": 3}} if images.has_maps(desk) else {},
            "trainers": {CHAMPION: {"description": "Start the next generation", "config": {}}},
            "strategies": {name: {"description": text} for name, (text, _) in STRATEGIES.items()},
            "scoring": {},
            "train_stats": {},
            "datastore": _totals(about.counts),
        }


def _totals(counts: dict[str, int]) -> dict[str, Any]:
    done = {"final": counts.get("submitted", 0) + counts.get("accepted", 0)}
    return {"total": sum(counts.values()), "completed": done["final"], "label_tags": done}


def _next(router: APIRouter, seats: Seats) -> None:
    @router.post("/activelearning/{strategy}", summary="Go on with one's patch, or lease the next one")
    def next_sample(request: Request, strategy: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        if strategy not in STRATEGIES:
            raise TicketNotFoundError(
                f"there is no strategy '{strategy}'", todo=f"Choose one of {', '.join(STRATEGIES)}"
            )
        name = (body or {}).get("client_id")
        desk = seats.of(request, name)
        lease = desk.next(STRATEGIES[strategy][1])
        if lease is None:
            return {}
        image = images.image_file(desk.view(lease.lease_id))
        stamp = int(lease.granted_at.timestamp())
        return {
            "id": seats.image(lease.lease_id),
            "path": "",
            "name": f"{lease.ticket_id}{images.EXTENSION}",
            "ts": stamp,
            "checksum": _checksum(image),
            "strategy": {strategy: {"ts": stamp, "client_id": name}},
            "info": _lease_info(lease),
        }


def _checksum(content: bytes) -> str:
    return f"SHA256:{hashlib.sha256(content).hexdigest()}"


def _lease_info(lease: Lease) -> dict[str, Any]:
    ticket = lease.ticket
    why = ticket.reason or ticket.stratum
    return {
        "ticket": ticket.ticket_id,
        "volume": ticket.volume_id,
        "box": ticket.box.to_dict(),
        "reason": why,
        "comment": lease.comment,
        "expires_at": lease.expires_at.isoformat(),
    }


def _datastore(router: APIRouter, seats: Seats) -> None:
    @router.get("/datastore/", summary="One's leases as a list of images")
    def datastore(request: Request, output: str = "") -> Any:
        desk = seats.of(request)
        held = desk.held()
        if output == "train":
            return [{"image": seats.image(lease.lease_id), "label": seats.image(lease.lease_id)} for lease in held]
        about = desk.info()
        if output != "all":
            return _totals(about.counts)
        info = {"params": {"label_names": images.label_names(about)}}
        return {
            "name": about.campaign,
            "description": "the patches that you hold",
            "images_dir": "",
            "labels_dir": "",
            "objects": {
                seats.image(lease.lease_id): {
                    "image": {"ext": images.EXTENSION, "info": _lease_info(lease)},
                    "labels": {"original": {"ext": images.EXTENSION, "info": info}},
                }
                for lease in held
            },
        }

    @router.head("/datastore/image", include_in_schema=False)
    @router.get("/datastore/image", summary="The image of a lease; its id is the right to it")
    def image(image: str, check_sum: str = "") -> Response:
        desk, lease_id = seats.of_image(image)
        content = images.image_file(desk.view(lease_id))
        if check_sum and check_sum != _checksum(content):
            raise TicketNotFoundError("the image has another checksum", where=image, todo="Fetch it again")
        return _file(content, f"{image}{images.EXTENSION}")

    @router.get("/datastore/image/info", summary="What a lease is about")
    def image_info(image: str) -> dict[str, Any]:
        desk, lease_id = seats.of_image(image)
        return _lease_info(desk.store.lease(lease_id))

    @router.put("/datastore/image", include_in_schema=False)
    @router.put("/datastore/", summary="Refused: volumes are imported, not uploaded")
    def put_image() -> None:
        raise QueueError("volumes are not uploaded here", todo="Import it with 'rescueseg add CAMPAIGN FILE'")

    @router.delete("/datastore/image", include_in_schema=False)
    @router.delete("/datastore/label", summary="Refused: what was handed in is kept for ever")
    def delete() -> None:
        raise QueueError("nothing is deleted: annotations are kept, every version", todo="Hand in a better one")


def _file(content: bytes, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _labels(router: APIRouter, seats: Seats) -> None:
    warned: dict[str, str] = {}

    @router.get("/datastore/label", summary="The mask to start from (tag original)")
    def get_label(label: str, tag: str = "original") -> Response:
        desk, lease_id = seats.of_image(label)
        if tag != "original":
            raise TicketNotFoundError(f"there is no label tagged '{tag}'", where=label, todo="Ask for 'original'")
        return _file(images.label_file(desk.view(lease_id)), f"{label}{images.EXTENSION}")

    @router.get("/datastore/label/info", summary="Names of the labels")
    def label_info(label: str, tag: str = "original") -> dict[str, Any]:
        return {"params": {"label_names": images.label_names(seats.of_image(label)[0].info())}, "tag": tag}

    @router.put("/datastore/label", summary="Hand in a mask; odd ones have to be handed in twice")
    def put_label(
        request: Request,
        image: str,
        label: Annotated[UploadFile, File()],
        params: Annotated[str, Form()] = "{}",
        tag: str = "",
    ) -> dict[str, str]:
        if tag not in ("", "final"):
            raise LabelError(f"a label tagged '{tag}' is not kept", where=image, todo="Submit it as 'final'")
        said = read_params(params)
        desk, segments = seats.of(request, said.get("client_id")), images.read_segments(said.get("label_info"))
        lease = seats.own_lease(desk, image)
        with AT_ONCE:
            labels = images.read_label(label.file, seats.frame(desk, lease), desk.info(), segments)
            _hand_in(desk, lease, labels, warned)
        return {"image": image, "label": image}


def _hand_in(desk: LocalDesk, lease: Lease, labels: PatchLabels, warned: dict[str, str]) -> None:
    """Hand in labels; what was doubted once is taken the second time, and a lease that ran out is taken again."""
    labels = check_patch(labels, lease.ticket.box, desk.campaign.config, where=f"ticket {lease.ticket_id}")
    insists = warned.get(lease.ticket_id) == labels.digest
    try:
        try:
            desk.submit(lease.lease_id, labels, TOOL, override=insists)
        except LeaseExpiredError:
            made = (v for v in desk.store.annotations(lease.ticket_id) if v.annotator == desk.annotator)
            if any(labels_digest(v.labels_digest, v.instances_digest) == labels.digest for v in made):
                return
            again = desk.next(ticket_id=lease.ticket_id)
            if again is None or again.start != lease.start:
                raise
            desk.submit(again.lease_id, labels, TOOL, override=insists)
    except LabelWarningsError as error:
        warned[lease.ticket_id] = labels.digest
        todo = "Submit it again to hand it in as it is"
        raise LabelWarningsError(error.what, where=error.where, todo=todo, warnings=error.warnings) from error
    warned.pop(lease.ticket_id, None)


def _infer(router: APIRouter, seats: Seats) -> None:
    @router.post("/infer/{model}", summary="The model's mask of a leased patch")
    def infer(
        request: Request,
        model: str,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        output: str = "",
    ) -> Response:
        desk = seats.of(request, read_params(params).get("client_id"))
        if model != CHAMPION:
            raise TicketNotFoundError(f"there is no model '{model[:64]}'", todo=f"Ask for '{CHAMPION}'")
        answer = json.dumps({"label_names": images.label_names(desk.info()), "latencies": {}})
        if output == "json":
            return Response(answer, media_type="application/json")
        if session_id:
            with predicted(desk, session_id) as found:
                content = found.read_bytes()
        else:
            content = images.prediction_file(desk.view(seats.of_image(image)[1]))
        name = f"{session_id or image}{images.EXTENSION}"
        if output == "image":
            return _file(content, name)
        fields = {"params": (None, answer, "application/json"), "image": (name, content, "application/octet-stream")}
        encoder = MultipartEncoder(fields=fields)
        return Response(encoder.to_string(), media_type=encoder.content_type)
