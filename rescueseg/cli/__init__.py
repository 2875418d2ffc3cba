"""The `rescueseg` command. Modules are imported where a command runs, so that `--help` stays quick."""
