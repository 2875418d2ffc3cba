"""One file per stage: thin Prefect tasks around `rescueseg.generation`. Only references cross their boundary."""
