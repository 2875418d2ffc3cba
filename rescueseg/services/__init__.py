"""Servers and processes of one machine and who may use them, Prefect's API, Dask clusters."""
