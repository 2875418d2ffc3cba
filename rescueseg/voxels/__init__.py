"""Masks as plain arrays: connected components and holes. Knows nothing else of rescueseg."""
