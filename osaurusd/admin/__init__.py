"""The admin API under `/v0/`, which `osaurusctl` uses over the Unix socket. One module per resource."""
