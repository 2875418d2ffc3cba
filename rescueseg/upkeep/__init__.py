"""What keeps a campaign whole for years: verify, backup and restore."""
