"""Secure aggregation, clipping, noise and accounting: one idea a module, each saying what it guarantees against whom.

`keys` and `wire`  who signs, and the canonical bytes that are signed
`shamir`, `masking`, `graph`, `fixed_point`  the protocol's parts
`protocol`, `secure_client`, `secure_server`  the protocol (Bonawitz et al. 2017, Bell et al. 2020) as state machines
`clipping`, `noise`, `update_codec`  from an update to the integers that are summed, and back
`accounting`, `ledger`  what was spent
"""
