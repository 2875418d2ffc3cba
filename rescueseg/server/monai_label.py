"""An endpoint that clients of MONAI Label, such as 3D Slicer, use as a MONAI Label server.

An image of theirs is a lease of ours: its id cannot be guessed and works while the lease runs, because 3D Slicer fetches
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
from rescueseg.annotation.label_checks import check_patch
from rescueseg.annotation.local_client import LocalClient
from rescueseg.errors import (
    LabelError,
    LabelWarningsError,
    LeaseExpiredError,
    QueueError,
    TicketNotFoundError,
    UnknownTokenError,
)
from rescueseg.labels import PatchLabels
from rescueseg.queue.execute import labels_digest
from rescueseg.queue.records import Lease
from rescueseg.server import access
from rescueseg.server import monai_images as images
from rescueseg.server.dependencies import Service
from rescueseg.server.monai_sessions import prediction, session_routes
from rescueseg.server.monai_training import training_routes
from rescueseg.server.monai_users import MonaiUsers, read_params
from rescueseg.server.uploads import AT_ONCE

TOOL = "MONAI Label client"
CHAMPION = "champion"
STRATEGIES: dict[str, tuple[str, Filters]] = {
    "queue": ("The next patch of the campaign, the most useful one first", Filters()),
    "pool": ("The next patch to train on", Filters(purpose="pool")),
    "validation": ("The next validation box: annotate all of it", Filters(purpose="validation")),
    "test": ("The next test box: annotate all of it", Filters(purpose="test")),
}
"""Strategies that a client may choose: description and filter by name."""


def monai_label_routes(service: Service) -> APIRouter:
    """Return the routes of the endpoint; they go below a prefix of their own."""
    router, users = APIRouter(tags=["MONAI Label"]), MonaiUsers(service)
    for add in (_auth, _about, _next, _datastore, _labels, _infer, session_routes, training_routes):
        add(router, users)
    return router


def _auth(router: APIRouter, users: MonaiUsers) -> None:
    @router.get("/auth/", summary="Whether a token is needed")
    def auth() -> dict[str, Any]:
        return {"enabled": not users.service.is_open, "client_id": "rescueseg", "realm": "rescueseg"}

    @router.post("/auth/token", summary="A token for a name and the token as its password")
    def token(username: Annotated[str, Form()], password: Annotated[str, Form()]) -> dict[str, str]:
        if access.holder(users.service.campaign.storage, password).name != username:
            raise UnknownTokenError("the token is somebody else's", todo="Give the name that it was made for")
        return {"access_token": password, "token_type": "bearer"}

    @router.get("/auth/token/valid", summary="Whether the token is good")
    def valid(request: Request) -> dict[str, str]:
        return {"username": users.client(request).annotator}


def _about(router: APIRouter, users: MonaiUsers) -> None:
    @router.get("/info/", summary="The campaign, its classes, models and strategies")
    def info(request: Request) -> dict[str, Any]:
        client = users.client(request)
        about = client.info()
        names = images.label_names(about)
        model = {"labels": names, "description": "The latest generation of the campaign", "config": {}}
        return {
            "name": about.campaign,
            "description": f"rescueseg campaign of {about.kind} labels",
            "version": "0.8.5",
            "labels": names,
            "models": {CHAMPION: {**model, "type": "segmentation", "dimension": 3}} if images.has_maps(client) else {},
            "trainers": {CHAMPION: {"description": "Start the next generation", "config": {}}},
            "strategies": {name: {"description": text} for name, (text, _) in STRATEGIES.items()},
            "scoring": {},
            "train_stats": {},
            "datastore": _totals(about.counts),
        }


def _totals(counts: dict[str, int]) -> dict[str, Any]:
    tags = {"final": counts.get("submitted", 0) + counts.get("accepted", 0)}
    return {"total": sum(counts.values()), "completed": tags["final"], "label_tags": tags}


def _next(router: APIRouter, users: MonaiUsers) -> None:
    @router.post("/activelearning/{strategy}", summary="Go on with one's patch, or lease the next one")
    def next_sample(request: Request, strategy: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        if strategy not in STRATEGIES:
            raise TicketNotFoundError(
                f"there is no strategy '{strategy}'", todo=f"Choose one of {', '.join(STRATEGIES)}"
            )
        name = (body or {}).get("client_id")
        client = users.client(request, name)
        lease = client.next(STRATEGIES[strategy][1])
        if lease is None:
            return {}
        image = images.image_file(client.view(lease.lease_id))
        stamp = int(lease.granted_at.timestamp())
        return {
            "id": users.image_id(lease.lease_id),
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


def _datastore(router: APIRouter, users: MonaiUsers) -> None:
    @router.get("/datastore/", summary="One's leases as a list of images")
    def datastore(request: Request, output: str = "") -> Any:
        client = users.client(request)
        leases = client.leases()
        if output == "train":
            return [
                {"image": users.image_id(lease.lease_id), "label": users.image_id(lease.lease_id)} for lease in leases
            ]
        about = client.info()
        if output != "all":
            return _totals(about.counts)
        info = {"params": {"label_names": images.label_names(about)}}
        return {
            "name": about.campaign,
            "description": "the patches that you hold",
            "images_dir": "",
            "labels_dir": "",
            "objects": {
                users.image_id(lease.lease_id): {
                    "image": {"ext": images.EXTENSION, "info": _lease_info(lease)},
                    "labels": {"original": {"ext": images.EXTENSION, "info": info}},
                }
                for lease in leases
            },
        }

    @router.head("/datastore/image", include_in_schema=False)
    @router.get("/datastore/image", summary="The image of a lease; its id is the right to it")
    def image(image: str, check_sum: str = "") -> Response:
        client, lease_id = users.client_of_image(image)
        content = images.image_file(client.view(lease_id))
        if check_sum and check_sum != _checksum(content):
            raise TicketNotFoundError("the image has another checksum", where=image, todo="Fetch it again")
        return _file(content, f"{image}{images.EXTENSION}")

    @router.get("/datastore/image/info", summary="What a lease is about")
    def image_info(image: str) -> dict[str, Any]:
        client, lease_id = users.client_of_image(image)
        return _lease_info(client.store.views.lease(lease_id))

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


def _labels(router: APIRouter, users: MonaiUsers) -> None:
    warning_digests: dict[str, str] = {}

    @router.get("/datastore/label", summary="The mask to start from (tag original)")
    def get_label(label: str, tag: str = "original") -> Response:
        client, lease_id = users.client_of_image(label)
        if tag != "original":
            raise TicketNotFoundError(f"there is no label tagged '{tag}'", where=label, todo="Ask for 'original'")
        return _file(images.label_file(client.view(lease_id)), f"{label}{images.EXTENSION}")

    @router.get("/datastore/label/info", summary="Names of the labels")
    def label_info(label: str, tag: str = "original") -> dict[str, Any]:
        return {"params": {"label_names": images.label_names(users.client_of_image(label)[0].info())}, "tag": tag}

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
        fields = read_params(params)
        client, segments = (
            users.client(request, fields.get("client_id")),
            images.read_segments(fields.get("label_info")),
        )
        lease = users.own_lease(client, image)
        with AT_ONCE:
            labels = images.read_label(label.file, images.Frame.of(client, lease), client.info(), segments)
            _hand_in(client, lease, labels, warning_digests)
        return {"image": image, "label": image}


def _hand_in(client: LocalClient, lease: Lease, labels: PatchLabels, warning_digests: dict[str, str]) -> None:
    """Hand in labels. Labels with warnings are accepted the second time; a lease that ran out is taken again."""
    labels = check_patch(labels, lease.ticket.box, client.campaign.config, where=f"ticket {lease.ticket_id}")
    override = warning_digests.get(lease.ticket_id) == labels.digest
    try:
        try:
            client.submit(lease.lease_id, labels, TOOL, override=override)
        except LeaseExpiredError:
            versions = (v for v in client.store.views.annotations(lease.ticket_id) if v.annotator == client.annotator)
            if any(labels_digest(v.labels_digest, v.instances_digest) == labels.digest for v in versions):
                return
            again = client.next(ticket_id=lease.ticket_id)
            if again is None or again.start != lease.start:
                raise
            client.submit(again.lease_id, labels, TOOL, override=override)
    except LabelWarningsError as error:
        warning_digests[lease.ticket_id] = labels.digest
        todo = "Submit it again to hand it in as it is"
        raise LabelWarningsError(error.what, where=error.where, todo=todo, warnings=error.warnings) from error
    warning_digests.pop(lease.ticket_id, None)


def _infer(router: APIRouter, users: MonaiUsers) -> None:
    @router.post("/infer/{model}", summary="The model's mask of a leased patch")
    def infer(
        request: Request,
        model: str,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        output: str = "",
    ) -> Response:
        client = users.client(request, read_params(params).get("client_id"))
        if model != CHAMPION:
            raise TicketNotFoundError(f"there is no model '{model[:64]}'", todo=f"Ask for '{CHAMPION}'")
        params_json = json.dumps({"label_names": images.label_names(client.info()), "latencies": {}})
        if output == "json":
            return Response(params_json, media_type="application/json")
        if session_id:
            with prediction(client, session_id) as file:
                content = file.read_bytes()
        else:
            content = images.prediction_file(client.view(users.client_of_image(image)[1]))
        name = f"{session_id or image}{images.EXTENSION}"
        if output == "image":
            return _file(content, name)
        fields = {
            "params": (None, params_json, "application/json"),
            "image": (name, content, "application/octet-stream"),
        }
        encoder = MultipartEncoder(fields=fields)
        return Response(encoder.to_string(), media_type=encoder.content_type)
