"""Who a client of MONAI Label is: the holder of its token, or the name it gives itself on a server without tokens."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request

from rescueseg.annotation.local_client import LocalDesk
from rescueseg.errors import LabelError, NotYourLeaseError, TicketNotFoundError
from rescueseg.queue.records import Lease
from rescueseg.server import access
from rescueseg.server.clients import Service
from rescueseg.server.monai_images import Frame


class Seats:
    """Seats clients at desks of the server.

    Parameters
    ----------
    office : Service
        What the server works on.
    """

    def __init__(self, office: Service) -> None:
        self.office = office

    def of(self, request: Request, name: object = None) -> LocalDesk:
        """Return the desk of who asks; `name` is what the client calls itself.

        Raises
        ------
        UnknownTokenError
            If a token is needed and there is none, or nobody has this one.
        AccessError
            If the name cannot be one.
        """
        token = access.bearer(request.headers.get("authorization", ""))
        if token is not None:
            person = access.holder(self.office.campaign, token)
        elif not self.office.is_open:
            raise access.token_needed()
        else:
            person = access.Person(access.checked_name(str(name or self.office.login)), "admin")
        return LocalDesk(self.office.campaign, self.office.store, *person)

    def of_image(self, image: str) -> tuple[LocalDesk, str]:
        """Return the desk of who holds the lease of an image id, and the lease; knowing the id is the right to look.

        Raises
        ------
        UnknownTokenError
            If the server did not make the id.
        TicketNotFoundError
            If its lease does not run any more.
        """
        lease_id = access.lease_of_image(self.office.key, image)
        running = {lease.lease_id: lease.annotator for lease in self.office.store.leases()}
        if lease_id not in running:
            raise TicketNotFoundError("the lease is over", where=image[:64], todo="Ask for the next sample")
        desk = LocalDesk(self.office.campaign, self.office.store, running[lease_id], "annotator")
        desk.heartbeat(lease_id)
        return desk, lease_id

    def own_lease(self, desk: LocalDesk, image: str) -> Lease:
        """Return the lease of an image id, running or over, to its holder.

        Raises
        ------
        UnknownTokenError
            If the server did not make the id.
        NotYourLeaseError
            If somebody else holds it.
        """
        lease = desk.store.lease(access.lease_of_image(self.office.key, image))
        if lease.annotator != desk.annotator:
            raise NotYourLeaseError("somebody else holds the patch", where=image[:64], todo="Ask for the next sample")
        return lease

    def frame(self, desk: LocalDesk, lease: Lease) -> Frame:
        """Return where the labels of a leased patch lie."""
        ticket = lease.ticket
        return Frame(ticket.box, desk.context(ticket), desk.campaign.volume(ticket.volume_id).spacing_um_zyx)

    def image(self, lease_id: str) -> str:
        """Return the image id of a lease."""
        return access.image_id(self.office.key, lease_id)


def read_params(params: str) -> dict[str, Any]:
    """Return what a client sends beside a file.

    Raises
    ------
    LabelError
        If it is no JSON object.
    """
    try:
        found = json.loads(params or "{}")
    except (ValueError, RecursionError) as error:
        raise LabelError("params is no JSON", where="params", todo="Send an object, or leave it out") from error
    if not isinstance(found, dict):
        raise LabelError("params is no object", where="params", todo="Send an object, or leave it out")
    return found
