"""Who may annotate which patch next: tickets, leases, reviews, the state machine in the database. Knows no arrays."""
