"""From a ticket to an accepted mask and back: files, checks, pairs, agreement, local and remote client."""
