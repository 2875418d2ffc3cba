"""Which places are starting patches, holdout boxes and strata of a volume."""
