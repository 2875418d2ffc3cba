"""Servers and processes of one machine, Prefect's API, Dask clusters."""
