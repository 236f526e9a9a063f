"""Small cluster on this machine, without Docker: PostgreSQL, a Prefect server, an S3 server, Dask, a process worker.

`python -m infra.stack up`, `down` and `status`. Everything it keeps lies in one folder, `.stack` here by default.
"""
