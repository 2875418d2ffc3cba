"""The stages of a generation: due, snapshot, train, infer, evaluate, tickets, publish; see `stage`."""
