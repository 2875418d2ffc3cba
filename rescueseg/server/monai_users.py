"""People who work through MONAI Label: known by their token, or by the name in a request to a server without tokens."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request

from rescueseg.annotation.local_client import LocalClient
from rescueseg.errors import LabelError, NotYourLeaseError, TicketNotFoundError
from rescueseg.queue.records import Lease
from rescueseg.server import access
from rescueseg.server.dependencies import Service


class MonaiUsers:
    """Finds the annotation client of the person behind a request, or behind an image id.

    Parameters
    ----------
    service : Service
        The service of the campaign.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    def client(self, request: Request, name: object = None) -> LocalClient:
        """Return the annotation client of the person who sends a request; `name` is the name in the request.

        Raises
        ------
        UnknownTokenError
            If a token is needed and the request has none, or an unknown one.
        AccessError
            If the name cannot be used.
        """
        token = access.bearer(request.headers.get("authorization", ""))
        if token is not None:
            person = access.holder(self.service.campaign.storage, token)
        elif not self.service.is_open:
            raise access.missing_token()
        else:
            person = access.Person(access.check_name(str(name or self.service.login)), "admin")
        return LocalClient(self.service.campaign, self.service.store, *person)

    def client_of_image(self, image: str) -> tuple[LocalClient, str]:
        """Return the annotation client of the annotator of an image id, and the id of the lease.

        Whoever knows the image id may see the image.

        Raises
        ------
        UnknownTokenError
            If the server did not make the id.
        TicketNotFoundError
            If its lease does not run any more.
        """
        lease_id = access.lease_of_image(self.service.key, image)
        annotators = {lease.lease_id: lease.annotator for lease in self.service.store.views.leases()}
        if lease_id not in annotators:
            raise TicketNotFoundError("the lease is over", where=image[:64], todo="Ask for the next sample")
        client = LocalClient(self.service.campaign, self.service.store, annotators[lease_id], "annotator")
        client.heartbeat(lease_id)
        return client, lease_id

    def own_lease(self, client: LocalClient, image: str) -> Lease:
        """Return the lease of an image id, running or over, to its annotator.

        Raises
        ------
        UnknownTokenError
            If the server did not make the id.
        NotYourLeaseError
            If somebody else holds it.
        """
        lease = client.store.views.lease(access.lease_of_image(self.service.key, image))
        if lease.annotator != client.annotator:
            raise NotYourLeaseError("somebody else holds the patch", where=image[:64], todo="Ask for the next sample")
        return lease

    def image_id(self, lease_id: str) -> str:
        """Return the image id of a lease."""
        return access.image_id(self.service.key, lease_id)


def read_params(params: str) -> dict[str, Any]:
    """Return the parameters that MONAI Label sends beside a file.

    Raises
    ------
    LabelError
        If they are no JSON object.

    Examples
    --------
    >>> read_params('{"client_id": "anna"}'), read_params("")
    ({'client_id': 'anna'}, {})
    """
    try:
        fields = json.loads(params or "{}")
    except (ValueError, RecursionError) as error:
        raise LabelError("params is no JSON", where="params", todo="Send an object, or leave it out") from error
    if not isinstance(fields, dict):
        raise LabelError("params is no object", where="params", todo="Send an object, or leave it out")
    return fields
