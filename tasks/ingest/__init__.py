"""Tasks that bring volumes and the first tickets into a campaign."""
