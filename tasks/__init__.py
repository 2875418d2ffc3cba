"""One file per stage: thin Prefect tasks around `rescueseg.stages`. Only references cross their boundary."""
